"""Edits and their operations: the calls of `Client`."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2
from sfumato_protos.v1 import editor_pb2, editor_pb2_grpc

from sfumato_client.edit_requests import Artifact, artifacts_of, build_edit_request
from sfumato_client.errors import from_rpc_error

RECONNECT_SECONDS = 60.0  # how long a watch looks for a lost gateway
WAIT_SECONDS = 30.0  # of one call of a longer wait
RETRY_SECONDS = 0.5


class Edits:
    """Calls that block; part of `Client`."""

    def __init__(self, channel: grpc.Channel, timeout: float) -> None:
        self.timeout = checked_timeout(timeout)
        self._editor: Any = editor_pb2_grpc.EditorServiceStub(channel)
        self._operations: Any = operations_pb2_grpc.OperationsStub(channel)

    def edit(self, method: str, **options: Any) -> Sequence[Artifact]:
        """Edits and waits: starts, then waits for, an operation. See start_edit for the options."""
        return artifacts_of(self.wait_operation(self.start_edit(method, **options).name))

    def start_edit(self, method: str, **options: Any) -> operations_pb2.Operation:
        """Queues an edit, which goes on whatever becomes of this process.

        Args:
            method: "vqgan-clip", "deep-image-prior" ...
            options: `image`, `mask`, `video` (bytes or paths), `prompts` (texts, "text:weight" or pairs),
                `seed`, `request_id` (the same again gives the same operation),
                `preview_interval_iterations`, and the fields of the method's message in editor.proto.

        Raises:
            SfumatoError: refused, with field, limit and value.
            ValueError: no such method or option.
        """
        return self._call(self._editor.Edit, build_edit_request(method, options))

    def watch_edit(self, name: str, after_iteration: int = 0) -> Iterator[editor_pb2.WatchEditResponse]:
        """Each iteration once, in order, until the edit ends; connects again when the gateway is lost."""
        request = editor_pb2.WatchEditRequest(name=name, after_iteration=after_iteration)
        since = time.monotonic()
        while True:
            call = self._editor.WatchEdit(request)
            try:
                for event in call:
                    yield event
                    request.after_iteration, since = event.iteration, time.monotonic()
                return
            except grpc.RpcError as error:
                if not is_lost(error, since):
                    raise from_rpc_error(error) from error
            finally:
                call.cancel()
            time.sleep(RETRY_SECONDS)

    def get_operation(self, name: str) -> operations_pb2.Operation:
        """The operation as it stands."""
        return self._call(self._operations.GetOperation, operations_pb2.GetOperationRequest(name=name))

    def list_operations(self, page_size: int = 0) -> Iterator[operations_pb2.Operation]:
        """All operations, the newest first, page by page."""
        request = operations_pb2.ListOperationsRequest(name="operations", page_size=page_size)
        while True:
            response = self._call(self._operations.ListOperations, request)
            yield from response.operations
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def wait_operation(self, name: str, timeout: float | None = None) -> operations_pb2.Operation:
        """The operation when it has ended, or as it stands after so many seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        since = time.monotonic()
        while True:
            left = WAIT_SECONDS if end is None else max(0.0, min(WAIT_SECONDS, end - time.monotonic()))
            try:
                operation = self._operations.WaitOperation(
                    wait_request(name, left), timeout=left + self.timeout
                )
                since = time.monotonic()
                if operation.done or (end is not None and time.monotonic() >= end):
                    return operation
            except grpc.RpcError as error:
                if not is_lost(error, since):
                    raise from_rpc_error(error) from error
                time.sleep(RETRY_SECONDS)

    def cancel_operation(self, name: str) -> None:
        """Ends an edit within one iteration; nothing where it has ended."""
        self._call(self._operations.CancelOperation, operations_pb2.CancelOperationRequest(name=name))

    def delete_operation(self, name: str) -> None:
        """Forgets an edit that has ended, and its files."""
        self._call(self._operations.DeleteOperation, operations_pb2.DeleteOperationRequest(name=name))

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def checked_timeout(seconds: float) -> float:
    """
    Raises:
        ValueError: not above 0 and finite: gRPC takes NaN and infinity for a deadline that is over.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout must be above 0 and finite, in seconds, but is {seconds}")
    return seconds


def wait_request(name: str, seconds: float) -> operations_pb2.WaitOperationRequest:
    """Asks for the operation when it has ended, or after so many seconds."""
    timeout = duration_pb2.Duration()
    timeout.FromMilliseconds(int(seconds * 1000))
    return operations_pb2.WaitOperationRequest(name=name, timeout=timeout)


def is_lost(error: grpc.RpcError, since: float) -> bool:
    """Whether the gateway went away, and not for too long."""
    lost = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    return lost and time.monotonic() - since < RECONNECT_SECONDS
