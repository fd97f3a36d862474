"""Messages to generations and their events back to messages."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator

import grpc
import structlog
import torch
from sfumato_protos.v1 import gateway_pb2, gateway_pb2_grpc

from sfumato.common import calls
from sfumato.common.calls import Context
from sfumato.common.errors import InvalidArgument, Unavailable
from sfumato.gateway.access import Access
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.compare_messages import resolved_settings
from sfumato.gateway.comparison import Comparison
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.edit_messages import edit_response, given_edit_fields
from sfumato.gateway.edit_parameters import resolve_edit
from sfumato.gateway.editing import EditorChannel, register_editing
from sfumato.gateway.fair_queue import Demand, FairQueue, Limits
from sfumato.gateway.families import ServedFamilies
from sfumato.gateway.family_messages import families_response
from sfumato.gateway.generate_messages import given_fields, to_response
from sfumato.gateway.generation import Generation, pace_key
from sfumato.gateway.job import Event as JobEvent
from sfumato.gateway.job_messages import as_event, check_handling, fingerprint
from sfumato.gateway.jobs import Jobs
from sfumato.gateway.message_parts import given_priority, manifest_message, take_request_id
from sfumato.gateway.pace import Pace
from sfumato.gateway.parameters import FamilyInfo, Parameters, resolve
from sfumato.gateway.prompt_edits import PromptEdit
from sfumato.gateway.row_steps import (
    comparison_row_steps,
    edit_row_steps,
    input_bytes,
    num_evaluations,
    row_steps,
)
from sfumato.gateway.safety import Concept, read_concepts
from sfumato.gateway.sampling import SCHEDULERS, make_scheduler

log = structlog.get_logger()


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Serves GatewayService."""

    service_name = "sfumato.v1.GatewayService"
    also_serves = ("sfumato.v1.EditorService", "google.longrunning.Operations")
    services: ModelServices
    families: ServedFamilies

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.admission = Access(settings)
        self.concepts: tuple[Concept, ...] = ()
        if settings.safety_concepts_file is not None:
            self.concepts = read_concepts(settings.safety_concepts_file.read_bytes())
        limits = Limits(
            settings.max_concurrent_images, settings.max_queued_row_steps, settings.max_queued_bytes
        )
        self.pace = Pace()
        self.jobs: Jobs[gateway_pb2.GenerateResponse] = Jobs(settings.max_job_bytes, self.admission.counted)
        self.queue = FairQueue(limits, self.pace.row_steps_per_second)

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
                self.families = ServedFamilies(self.services, info, self.settings.resolve_seconds)
                await self.families.looked()
                return
            except (grpc.aio.AioRpcError, Unavailable) as error:
                log.info("waiting for the model services", error=str(error)[:200])
                # gRPC looks up a name that has no address ever more seldom: a new channel asks at once.
                await self.services.close()
                await asyncio.sleep(0.5)
                self.services = ModelServices(self.settings, self.concepts)

    def is_sound(self) -> bool:
        """Whether some denoiser gives right canary steps, or none is there to say. Load does not matter."""
        return not self.services.canary.all_unsound

    async def close(self) -> None:
        await self.jobs.close()
        if hasattr(self, "families"):
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
        return families_response(self.families, answers, editing, self.settings.max_pixels)

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
        take_request_id(request.request_id)
        policy = check_handling(request, self.settings.max_keep_seconds)
        deadline = self._deadline()
        responses = self._responses(request, deadline)
        if request.request_id:
            key, start = (calls.caller.get().tenant, request.request_id), request.resume_from
            job = self.jobs.join(
                key, fingerprint(request), policy, start, lambda: self._job_events(request, key, deadline)
            )
            responses = job.follow(start)
        async with contextlib.aclosing(responses):
            async for response in responses:
                yield response

    async def _job_events(
        self, request: gateway_pb2.GenerateRequest, key: tuple[str, str], deadline: float
    ) -> AsyncGenerator[JobEvent[gateway_pb2.GenerateResponse]]:
        """As _responses, in the job's own task; sent again as resolved, the request is still the same."""
        calls.deadline.set(None)  # a stream's is not the job's: when it passes, that stream ends
        async with contextlib.aclosing(self._responses(request, deadline)) as responses:
            async for response in responses:
                if response.HasField("accepted") and not (request.image or request.mask):
                    self.jobs.also(key, fingerprint(response.accepted.parameters))
                yield as_event(response)

    async def _responses(
        self, request: gateway_pb2.GenerateRequest, deadline: float
    ) -> AsyncGenerator[gateway_pb2.GenerateResponse]:
        with self.families.use(request.family) as served:
            family, services = served.info, served.services
            parameters = resolve(given_fields(request), family, self.settings)
            cost = row_steps(parameters, family)
            held, priority = input_bytes(parameters), given_priority(request)
            demand = self._demand(cost, parameters.num_images, held, priority, deadline)
            self._check_deadline(request, parameters, family, demand, self.queue.row_steps_before(demand))
            async with self.queue.place(demand):
                self._check_deadline(request, parameters, family, demand, 0)
                pixels = self.settings.max_input_pixels
                end = deadline if request.allow_partial else math.inf
                generation = Generation(parameters, family, services, pixels, self.pace, cost, end)
                index = 0
                async for event in generation.events():
                    response = to_response(event, parameters, family)
                    if response.HasField("done"):
                        response.done.manifest.CopyFrom(
                            manifest_message(services.weights(), services.engines())
                        )
                    response.event_index = index
                    index += 1
                    yield response

    async def EditPrompt(
        self, request: gateway_pb2.EditPromptRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.EditPromptResponse]:
        take_request_id(request.request_id)
        with self.families.use(request.family) as served:
            family = served.info
            parameters = resolve_edit(given_edit_fields(request), family, self.settings)
            cost, held = edit_row_steps(parameters, family), input_bytes(parameters.source)
            demand = self._demand(cost, 2, held, given_priority(request), self._deadline())
            async with self.queue.place(demand):
                edit = PromptEdit(parameters, family, served.services)
                async for event in edit.events():
                    yield edit_response(event, parameters, family)

    async def Compare(
        self, request: gateway_pb2.CompareRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.CompareResponse]:
        take_request_id(request.request.request_id)
        with self.families.use(request.request.family) as served:
            family = served.info
            settings = resolved_settings(request, given_fields(request.request), family, self.settings)
            cost, held = comparison_row_steps(settings, family), sum(map(input_bytes, settings))
            priority, deadline = given_priority(request.request), self._deadline()
            demand = self._demand(cost, settings[0].num_images, held, priority, deadline)
            async with self.queue.place(demand):
                pixels = self.settings.max_input_pixels
                comparison = Comparison(settings, family, served.services, pixels, self.pace)
                async for index, event in comparison.events():
                    yield gateway_pb2.CompareResponse(
                        setting_index=index,
                        label=request.settings[index].label or str(index),
                        event=to_response(event, settings[index], family),
                    )

    def _deadline(self) -> float:
        """Of the current call, by time.monotonic; infinity without one."""
        remaining = calls.remaining_seconds()
        return math.inf if remaining is None else time.monotonic() + remaining

    def _demand(
        self, row_steps: int, num_images: int, num_bytes: int, priority: int, deadline: float
    ) -> Demand:
        """What the current call's client asks for."""
        tenant = calls.caller.get().tenant
        share = self.admission.share(tenant)
        return Demand(row_steps, num_images, num_bytes, tenant, share, priority, deadline)

    def _check_deadline(
        self,
        request: gateway_pb2.GenerateRequest,
        parameters: Parameters,
        family: FamilyInfo,
        demand: Demand,
        row_steps_before: float,
    ) -> None:
        """
        Raises:
            DeadlineExceeded: it cannot be met, and the request takes no less than the whole, in time.
        """
        goes_on = request.on_disconnect == gateway_pb2.ON_DISCONNECT_CONTINUE
        if math.isfinite(demand.deadline) and not request.allow_partial and not goes_on:
            num_steps, left = num_evaluations(parameters, family), demand.deadline - time.monotonic()
            self.pace.check(pace_key(parameters, family), num_steps, row_steps_before, left)
