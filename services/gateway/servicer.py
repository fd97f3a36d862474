"""Messages to generations and their events back to messages."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import structlog
import torch
from sfumato_protos.v1 import gateway_pb2, gateway_pb2_grpc

from sfumato.common.calls import Context
from sfumato.common.errors import InvalidArgument, Unavailable
from sfumato.common.status import ForwardedError
from sfumato.gateway.access import Access
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.editing import EditorChannel, register_editing
from sfumato.gateway.families import Families
from sfumato.gateway.family_messages import families_response
from sfumato.gateway.runs import Runs
from sfumato.gateway.safety import Concept, read_concepts
from sfumato.gateway.sampling import SCHEDULERS, make_scheduler

log = structlog.get_logger()


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Serves GatewayService."""

    service_name = "sfumato.v1.GatewayService"
    also_serves = ("sfumato.v1.EditorService", "google.longrunning.Operations")
    services: ModelServices
    families: Families  # from when the model services are there
    runs: Runs

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.admission = Access(settings)
        self.concepts: tuple[Concept, ...] = ()
        if settings.safety_concepts_file is not None:
            self.concepts = read_concepts(settings.safety_concepts_file.read_bytes())

    def register(self, server: grpc.aio.Server) -> None:
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(self, server)
        self.editing = EditorChannel(self.settings)
        register_editing(self.editing, server)

    async def load(self) -> None:
        # The schedulers' arithmetic is on one small tensor: more threads only cost.
        torch.set_num_threads(1)
        self.services = ModelServices(self.settings, self.concepts)
        while True:
            try:
                info = await self.services.family()
                # diffusers imports each scheduler at its first use: now, not in the first request.
                for name in SCHEDULERS:
                    make_scheduler(name, info.scheduler_config)
                self.families = Families(self.services, info, self.settings.resolve_seconds)
                self.runs = Runs(self.settings, self.admission, self.families.served)
                await self.families.looked()
                return
            except (ForwardedError, Unavailable) as error:
                log.info("waiting for the model services", error=str(error)[:200])
                # gRPC looks up a name that has no address ever more seldom: a new channel asks at once.
                await self.services.close()
                await asyncio.sleep(0.5)
                self.services = ModelServices(self.settings, self.concepts)

    def is_sound(self) -> bool:
        """Whether some denoiser gives right canary steps, or none is there to say. Load does not matter."""
        return not self.services.canary.all_unsound

    async def close(self) -> None:
        if hasattr(self, "runs"):
            await self.runs.jobs.close()
            await self.families.close()
        if hasattr(self, "services"):
            await self.services.close()
        await self.editing.close()

    async def ListFamilies(
        self, request: gateway_pb2.ListFamiliesRequest, context: Context
    ) -> gateway_pb2.ListFamiliesResponse:
        if not 0 <= request.page_size <= 1000:
            raise InvalidArgument("page_size", "0 to 1000", request.page_size)
        if request.page_token:
            raise InvalidArgument("page_token", "a token that this service gave", request.page_token)
        answers, editing = await asyncio.gather(self.families.answers(), self.editing.methods())
        return families_response(self.families.served, answers, editing, self.settings.max_pixels)

    async def LoadFamily(
        self, request: gateway_pb2.LoadFamilyRequest, context: Context
    ) -> gateway_pb2.LoadFamilyResponse:
        await self.families.load(request.name)
        listed = await self.ListFamilies(gateway_pb2.ListFamiliesRequest(), context)
        return gateway_pb2.LoadFamilyResponse(
            family=next((family for family in listed.families if family.name == request.name), None)
        )

    async def UnloadFamily(
        self, request: gateway_pb2.UnloadFamilyRequest, context: Context
    ) -> gateway_pb2.UnloadFamilyResponse:
        await self.families.unload(request.name)
        return gateway_pb2.UnloadFamilyResponse()

    async def Generate(
        self, request: gateway_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.GenerateResponse]:
        async with contextlib.aclosing(self.runs.responses(request, self.runs.generate)) as responses:
            async for response in responses:
                yield response

    async def EditPrompt(
        self, request: gateway_pb2.EditPromptRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.EditPromptResponse]:
        async with contextlib.aclosing(self.runs.responses(request, self.runs.edit_prompt)) as responses:
            async for response in responses:
                yield response

    async def Compare(
        self, request: gateway_pb2.CompareRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.CompareResponse]:
        async with contextlib.aclosing(self.runs.responses(request, self.runs.compare)) as responses:
            async for response in responses:
                yield response
