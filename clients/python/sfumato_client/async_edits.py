"""Edits and their operations: the calls of `AsyncClient`."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from sfumato_protos.v1 import editor_pb2, editor_pb2_grpc

from sfumato_client.edit_requests import Artifact, artifacts_of, build_edit_request
from sfumato_client.edits import RETRY_SECONDS, WAIT_SECONDS, checked_timeout, is_lost, wait_request
from sfumato_client.errors import from_rpc_error


class AsyncEdits:
    """The same, awaited; part of `AsyncClient`."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        self.timeout = checked_timeout(timeout)
        self._editor: Any = editor_pb2_grpc.EditorServiceStub(channel)
        self._operations: Any = operations_pb2_grpc.OperationsStub(channel)

    async def edit(self, method: str, **options: Any) -> Sequence[Artifact]:
        """Edits and waits. See start_edit of `Client` for the options."""
        operation = await self.start_edit(method, **options)
        return artifacts_of(await self.wait_operation(operation.name))

    async def start_edit(self, method: str, **options: Any) -> operations_pb2.Operation:
        """Queues an edit, which goes on whatever becomes of this process."""
        return await self._call(self._editor.Edit, build_edit_request(method, options))

    async def watch_edit(
        self, name: str, after_iteration: int = 0
    ) -> AsyncIterator[editor_pb2.WatchEditResponse]:
        """Each iteration once, in order, until the edit ends; connects again when the gateway is lost."""
        request = editor_pb2.WatchEditRequest(name=name, after_iteration=after_iteration)
        since = time.monotonic()
        while True:
            call = self._editor.WatchEdit(request)
            try:
                async for event in call:
                    yield event
                    request.after_iteration, since = event.iteration, time.monotonic()
                return
            except grpc.aio.AioRpcError as error:
                if not is_lost(error, since):
                    raise from_rpc_error(error) from error
            finally:
                call.cancel()
            await asyncio.sleep(RETRY_SECONDS)

    async def get_operation(self, name: str) -> operations_pb2.Operation:
        """The operation as it stands."""
        return await self._call(self._operations.GetOperation, operations_pb2.GetOperationRequest(name=name))

    async def list_operations(self, page_size: int = 0) -> AsyncIterator[operations_pb2.Operation]:
        """All operations, the newest first, page by page."""
        request = operations_pb2.ListOperationsRequest(name="operations", page_size=page_size)
        while True:
            response = await self._call(self._operations.ListOperations, request)
            for operation in response.operations:
                yield operation
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def wait_operation(self, name: str, timeout: float | None = None) -> operations_pb2.Operation:
        """The operation when it has ended, or as it stands after so many seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        since = time.monotonic()
        while True:
            left = WAIT_SECONDS if end is None else max(0.0, min(WAIT_SECONDS, end - time.monotonic()))
            try:
                operation = await self._operations.WaitOperation(
                    wait_request(name, left), timeout=left + self.timeout
                )
                since = time.monotonic()
                if operation.done or (end is not None and time.monotonic() >= end):
                    return operation
            except grpc.aio.AioRpcError as error:
                if not is_lost(error, since):
                    raise from_rpc_error(error) from error
                await asyncio.sleep(RETRY_SECONDS)

    async def cancel_operation(self, name: str) -> None:
        """Ends an edit within one iteration; nothing where it has ended."""
        await self._call(self._operations.CancelOperation, operations_pb2.CancelOperationRequest(name=name))

    async def delete_operation(self, name: str) -> None:
        """Forgets an edit that has ended, and its files."""
        await self._call(self._operations.DeleteOperation, operations_pb2.DeleteOperationRequest(name=name))

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
