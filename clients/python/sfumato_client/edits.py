"""Edits and their operations: the calls of `Client`."""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf import duration_pb2
from sfumato_protos.v1 import editor_pb2

from sfumato_client.calls import Calls
from sfumato_client.edit_requests import Artifact, artifacts_of, build_edit_request
from sfumato_client.errors import SfumatoError
from sfumato_client.rejoin import Outage, Watch, lost

WAIT_SECONDS = 30.0  # of one call of a longer wait


class Edits(Calls):
    """Calls that block; part of `Client`."""

    def edit(self, method: str, **options: Any) -> Sequence[Artifact]:
        """Starts an edit and waits for what it makes. See start_edit for the options.

        The edit goes on where the wait ends early; with a request_id it is "operations/{request_id}".
        """
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

    def watch_edit(self, name: str, after_iteration: int = 0) -> Generator[editor_pb2.WatchEditResponse]:
        """Each iteration once, in order, until the edit ends, without a deadline.

        A gateway that is lost is looked for, for a minute.
        """
        return self._events(self._editor.WatchEdit, Watch(name, after_iteration))

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
        """The operation when it has ended, or as it stands after so many seconds. Default: however long.

        A gateway that is lost is looked for, for a minute, and no longer than the timeout.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        outage = Outage()
        while True:
            left = max(0.0, min(WAIT_SECONDS, end - time.monotonic()))
            try:
                operation = self._call(
                    self._operations.WaitOperation, wait_request(name, left), left + self.timeout
                )
            except SfumatoError as error:
                time.sleep(wait_seconds(outage, error, end))
            else:
                outage = Outage()
                if operation.done or time.monotonic() >= end:
                    return operation

    def cancel_operation(self, name: str) -> None:
        """Ends an edit within one iteration; nothing where it has ended."""
        self._call(self._operations.CancelOperation, operations_pb2.CancelOperationRequest(name=name))

    def delete_operation(self, name: str) -> None:
        """Forgets an edit that has ended, and its files."""
        self._call(self._operations.DeleteOperation, operations_pb2.DeleteOperationRequest(name=name))


def wait_request(name: str, seconds: float) -> operations_pb2.WaitOperationRequest:
    """Asks for the operation when it has ended, or after so many seconds."""
    timeout = duration_pb2.Duration()
    timeout.FromMilliseconds(int(seconds * 1000))
    return operations_pb2.WaitOperationRequest(name=name, timeout=timeout)


def wait_seconds(outage: Outage, error: SfumatoError, end: float) -> float:
    """How long to wait before the operation is asked for again.

    Raises:
        SfumatoError: the gateway was not lost, or is to be looked for no longer; end: of time.monotonic().
    """
    seconds = outage.wait_seconds(lost(error))
    if time.monotonic() + seconds >= end:
        raise error
    return seconds
