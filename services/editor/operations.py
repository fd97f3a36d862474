"""The standard google.longrunning.Operations service over the jobs."""

import asyncio

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2

from sfumato.common import calls
from sfumato.common.calls import Context, remaining_seconds
from sfumato.common.errors import InvalidArgument
from sfumato.editor.jobs import Jobs
from sfumato.editor.messages import operation_name, to_operation
from sfumato.editor.records import page
from sfumato.editor.watching import WAIT_SECONDS, until_ended

PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
ANSWER_SECONDS = 0.5  # a wait ends so long before its deadline


class OperationsServicer(operations_pb2_grpc.OperationsServicer):
    """Serves google.longrunning.Operations."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.store = jobs.runner.store

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            raise InvalidArgument("page_size", f"0 to {MAX_PAGE_SIZE}", request.page_size)
        if request.filter:
            raise InvalidArgument("filter", "empty: filters are not offered", request.filter)
        return await asyncio.to_thread(self._list, request.page_size or PAGE_SIZE, request.page_token)

    def _list(self, size: int, token: str) -> operations_pb2.ListOperationsResponse:
        names, more = page(size, token, calls.caller.get().owner)
        jobs = [job for name in names if (job := self.jobs.find(name, None))]
        operations = [to_operation(job, self.store, with_data=False) for job in jobs]
        return operations_pb2.ListOperationsResponse(operations=operations, next_page_token=more)

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        return await self._operation(operation_name(request.name), 0)

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        wanted = calls.wait_seconds(request)
        left = remaining_seconds()
        limits = [wanted, None if left is None else max(0.0, left - ANSWER_SECONDS)]
        seconds = min((limit for limit in limits if limit is not None), default=None)
        return await self._operation(operation_name(request.name), seconds)

    async def _operation(self, operation: str, seconds: float | None) -> operations_pb2.Operation:
        job = await until_ended(self.jobs, operation, seconds)
        return await asyncio.to_thread(to_operation, job, self.store)

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        await asyncio.to_thread(self.jobs.cancel, operation_name(request.name))
        return empty_pb2.Empty()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        operation = operation_name(request.name)
        while not await asyncio.to_thread(self.jobs.delete, operation):
            await asyncio.sleep(WAIT_SECONDS)
        return empty_pb2.Empty()
