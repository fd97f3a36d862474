"""Edit requests to jobs, and their progress back."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

import grpc
import structlog
from google.longrunning import operations_pb2, operations_pb2_grpc
from sfumato_protos.v1 import editor_pb2, editor_pb2_grpc

from sfumato.common import calls
from sfumato.common.calls import Context
from sfumato.common.devices import setup_device
from sfumato.common.errors import InvalidArgument, NotFound, SfumatoError
from sfumato.common.family import family_name
from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.config import EditorSettings
from sfumato.editor.edits import ID, ID_RULE, key_of, prepare
from sfumato.editor.jobs import Jobs
from sfumato.editor.messages import operation_name, to_operation, to_request, to_watch_response
from sfumato.editor.models import FamilyModels
from sfumato.editor.operations import OperationsServicer
from sfumato.editor.records import Job
from sfumato.editor.registry import method_of, offered
from sfumato.editor.runs import Runner
from sfumato.editor.watching import watch

log = structlog.get_logger()

COUNT_SECONDS = 5.0  # between counts of open edits, for the metrics


class EditorServicer(editor_pb2_grpc.EditorServiceServicer):
    """Serves EditorService, and with it google.longrunning.Operations."""

    service_name = "sfumato.v1.EditorService"
    also_serves = ("google.longrunning.Operations",)

    def __init__(self, settings: EditorSettings) -> None:
        self.settings = settings
        self.store = ArtifactStore(settings.artifacts)
        device = setup_device(settings.device, settings.num_threads)
        self.models = FamilyModels(settings.family, device, self.store, settings.clip)
        self.jobs = Jobs(Runner(self.models, self.store, settings), settings)
        self._chores: list[asyncio.Task[None]] = []

    def register(self, server: grpc.aio.Server) -> None:
        editor_pb2_grpc.add_EditorServiceServicer_to_server(self, server)
        operations_pb2_grpc.add_OperationsServicer_to_server(OperationsServicer(self.jobs), server)

    async def load(self) -> None:
        if self.settings.clip:
            # What cannot be had ends the editor here, as it ends the encoder, and not the first edit.
            await asyncio.to_thread(lambda: self.models.clip)
        await asyncio.to_thread(self.jobs.start)
        self._chores = [
            asyncio.create_task(self._regularly(self.settings.sweep_seconds, self.jobs.sweep)),
            asyncio.create_task(self._regularly(COUNT_SECONDS, self.jobs.count_open)),
        ]

    async def close(self) -> None:
        for chore in self._chores:
            chore.cancel()
        if self._chores:
            await asyncio.to_thread(self.jobs.stop)

    async def _regularly(self, seconds: float, chore: Callable[[], int | None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                if done := await asyncio.to_thread(chore):
                    log.info(chore.__name__, operations=done)
            except SfumatoError as error:
                log.warning("chore failed", chore=chore.__name__, error=error.message)
            except Exception:  # of the database: it may be well again the next time
                log.exception("chore failed", chore=chore.__name__)

    async def GetEditorInfo(
        self, request: editor_pb2.GetEditorInfoRequest, context: Context
    ) -> editor_pb2.GetEditorInfoResponse:
        return editor_pb2.GetEditorInfoResponse(
            family=family_name(self.settings.family),
            methods=[method.name for method in offered(self.settings.family, self.settings.clip)],
            max_pixels=self.settings.max_pixels,
            result_ttl_seconds=self.settings.result_ttl_seconds,
        )

    async def Edit(self, request: editor_pb2.EditRequest, context: Context) -> operations_pb2.Operation:
        if request.request_id and not ID.fullmatch(request.request_id):
            raise InvalidArgument("request_id", ID_RULE, request.request_id)
        served = family_name(self.settings.family)
        if request.family not in ("", served):
            raise NotFound(f"{request.family} is not served here; {served} is", field="family",
                           limit=served, value=request.family)  # fmt: skip
        job = await asyncio.to_thread(self._submit, request)
        return await asyncio.to_thread(to_operation, job, self.store)

    def _submit(self, message: editor_pb2.EditRequest) -> Job:
        name, request = to_request(
            message, key_of(message.request_id or uuid.uuid4().hex, calls.caller.get().owner)
        )
        if found := self.jobs.find(request.id, request.fingerprint):
            return found
        self.jobs.check_room()
        method = method_of(name, self.settings.family, self.settings.clip)
        return self.jobs.submit(prepare(request, method, self.store, self.settings))

    async def WatchEdit(
        self, request: editor_pb2.WatchEditRequest, context: Context
    ) -> AsyncIterator[editor_pb2.WatchEditResponse]:
        if request.after_iteration < 0:
            raise InvalidArgument("after_iteration", "0 or more", request.after_iteration)
        async for event in watch(self.jobs, operation_name(request.name), request.after_iteration):
            p = event.progress
            yield to_watch_response(p.iteration, p.num_iterations, p.losses, event.preview)
