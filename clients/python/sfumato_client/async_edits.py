"""Edits and their operations: the calls of `AsyncClient`."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from google.longrunning import operations_pb2
from sfumato_protos.v1 import editor_pb2

from sfumato_client.calls import AsyncCalls
from sfumato_client.edit_requests import Artifact, artifacts_of, build_edit_request
from sfumato_client.edits import WAIT_SECONDS, wait_request, wait_seconds
from sfumato_client.errors import SfumatoError
from sfumato_client.rejoin import Outage, Watch


class AsyncEdits(AsyncCalls):
    """The same, awaited; part of `AsyncClient`."""

    async def edit(self, method: str, **options: Any) -> Sequence[Artifact]:
        """As Edits.edit: cancelling the task ends the wait, and not the edit."""
        operation = await self.start_edit(method, **options)
        return artifacts_of(await self.wait_operation(operation.name))

    async def start_edit(self, method: str, **options: Any) -> operations_pb2.Operation:
        """Queues an edit, which goes on whatever becomes of this process."""
        return await self._call(self._editor.Edit, build_edit_request(method, options))

    def watch_edit(self, name: str, after_iteration: int = 0) -> AsyncGenerator[editor_pb2.WatchEditResponse]:
        """As Edits.watch_edit."""
        return self._events(self._editor.WatchEdit, Watch(name, after_iteration))

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
        """As Edits.wait_operation."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        outage = Outage()
        while True:
            left = max(0.0, min(WAIT_SECONDS, end - time.monotonic()))
            try:
                operation = await self._call(
                    self._operations.WaitOperation, wait_request(name, left), left + self.timeout
                )
            except SfumatoError as error:
                await asyncio.sleep(wait_seconds(outage, error, end))
            else:
                outage = Outage()
                if operation.done or time.monotonic() >= end:
                    return operation

    async def cancel_operation(self, name: str) -> None:
        """Ends an edit within one iteration; nothing where it has ended."""
        await self._call(self._operations.CancelOperation, operations_pb2.CancelOperationRequest(name=name))

    async def delete_operation(self, name: str) -> None:
        """Forgets an edit that has ended, and its files."""
        await self._call(self._operations.DeleteOperation, operations_pb2.DeleteOperationRequest(name=name))
