"""Requests that are run: checked, admitted, made into responses, and joined again by their ids."""

import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from sfumato_protos.v1 import gateway_pb2

from sfumato.common import calls
from sfumato.gateway.access import Access
from sfumato.gateway.compare_messages import resolved_settings
from sfumato.gateway.comparison import Comparison
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.edit_messages import edit_response, given_edit_fields
from sfumato.gateway.edit_parameters import resolve_edit
from sfumato.gateway.fair_queue import Demand, FairQueue, Limits
from sfumato.gateway.generate_messages import given_fields, to_response
from sfumato.gateway.generation import Generation, pace_key
from sfumato.gateway.job import Event as JobEvent
from sfumato.gateway.job_messages import (
    Handling,
    Request,
    Response,
    as_event,
    check_handling,
    fingerprint,
    handling_of,
    numbered,
    resolved,
)
from sfumato.gateway.jobs import Jobs
from sfumato.gateway.message_parts import given_priority, manifest_message, take_request_id
from sfumato.gateway.pace import Key, Pace
from sfumato.gateway.parameters import FamilyInfo, Parameters, resolve
from sfumato.gateway.prompt_edits import PromptEdit, edit_runs
from sfumato.gateway.row_steps import (
    comparison_row_steps,
    edit_row_steps,
    input_bytes,
    num_evaluations,
    row_steps,
)
from sfumato.gateway.served_families import ServedFamilies


class Runs:
    """Of one gateway replica."""

    def __init__(self, settings: GatewaySettings, admission: Access, families: ServedFamilies) -> None:
        self.settings, self.admission, self.families = settings, admission, families
        limits = Limits(
            settings.max_concurrent_images, settings.max_queued_row_steps, settings.max_queued_bytes
        )
        self.pace = Pace()
        self.jobs: Jobs[Response] = Jobs(settings.max_job_bytes, admission.counted)
        self.queue = FairQueue(limits, self.pace.row_steps_per_second)

    async def responses(
        self, request: Request, run: Callable[[Any, float], AsyncGenerator[Response]]
    ) -> AsyncGenerator[Any]:
        """What a run gives, numbered; of a request with an id, what its job has.

        Args:
            request: the current call's.
            run: one of the methods below: of the request, and of the call's deadline by time.monotonic.
        """
        handling = handling_of(request)
        take_request_id(handling.request_id)
        policy = check_handling(handling, self.settings.max_keep_seconds)
        remaining = calls.remaining_seconds()
        deadline = math.inf if remaining is None else time.monotonic() + remaining

        async def each() -> AsyncGenerator[Response]:
            index = 0
            async with contextlib.aclosing(run(request, deadline)) as responses:
                async for response in responses:
                    numbered(response).event_index = index
                    index += 1
                    yield response

        found = each()
        if handling.request_id:
            key, start = (calls.caller.get().tenant, handling.request_id), handling.resume_from
            job = self.jobs.join(
                key, fingerprint(request), policy, start, lambda: self._job_events(request, key, each())
            )
            found = job.follow(start)
        async with contextlib.aclosing(found):
            async for response in found:
                yield response

    async def _job_events(
        self, request: Request, key: tuple[str, str], responses: AsyncGenerator[Response]
    ) -> AsyncGenerator[JobEvent[Response]]:
        """In the job's own task; sent again as resolved, the request is still the same."""
        calls.deadline.set(None)  # a stream's is not the job's: when it passes, that stream ends
        async with contextlib.aclosing(responses):
            async for response in responses:
                if (same := resolved(request, response)) is not None:
                    self.jobs.also(key, fingerprint(same))
                yield as_event(response)

    async def generate(
        self, request: gateway_pb2.GenerateRequest, deadline: float
    ) -> AsyncGenerator[gateway_pb2.GenerateResponse]:
        """A generation."""
        with self.families.use(request.family) as served:
            family, services = served.info, served.services
            parameters = resolve(given_fields(request), family, self.settings)
            cost = row_steps(parameters, family)
            demand = self._demand(request, cost, parameters.num_images, input_bytes(parameters), deadline)
            steps = [_steps(parameters, family)]
            async with self._place(request, demand, steps):
                pixels = self.settings.max_input_pixels
                end = deadline if request.allow_partial else math.inf
                generation = Generation(parameters, family, services, pixels, self.pace, cost, end)
                async for event in generation.events():
                    response = to_response(event, parameters, family)
                    if response.HasField("done"):
                        response.done.manifest.CopyFrom(
                            manifest_message(services.weights(), services.engines())
                        )
                    yield response

    async def edit_prompt(
        self, request: gateway_pb2.EditPromptRequest, deadline: float
    ) -> AsyncGenerator[gateway_pb2.EditPromptResponse]:
        """A prompt edit."""
        with self.families.use(request.family) as served:
            family = served.info
            parameters = resolve_edit(given_edit_fields(request), family, self.settings)
            cost, held = edit_row_steps(parameters, family), input_bytes(parameters.source)
            demand = self._demand(request, cost, 2, held, deadline)
            async with self._place(request, demand, edit_runs(parameters, family)):
                end = deadline if request.allow_partial else math.inf
                edit = PromptEdit(parameters, family, served.services, self.pace, end)
                async for event in edit.events():
                    yield edit_response(event, parameters, family)

    async def compare(
        self, request: gateway_pb2.CompareRequest, deadline: float
    ) -> AsyncGenerator[gateway_pb2.CompareResponse]:
        """A comparison."""
        shared = request.request
        with self.families.use(shared.family) as served:
            family = served.info
            settings = resolved_settings(request, given_fields(shared), family, self.settings)
            cost, held = comparison_row_steps(settings, family), sum(map(input_bytes, settings))
            demand = self._demand(shared, cost, settings[0].num_images, held, deadline)
            async with self._place(shared, demand, [_steps(p, family) for p in settings]):
                pixels = self.settings.max_input_pixels
                end = deadline if shared.allow_partial else math.inf
                comparison = Comparison(settings, family, served.services, pixels, self.pace, end)
                async for index, event in comparison.events():
                    yield gateway_pb2.CompareResponse(
                        setting_index=index,
                        label=request.settings[index].label or str(index),
                        event=to_response(event, settings[index], family),
                    )

    def _demand(
        self, handling: Handling, row_steps: int, num_images: int, num_bytes: int, deadline: float
    ) -> Demand:
        """What the current call's client asks for."""
        tenant = calls.caller.get().tenant
        share, priority = self.admission.share(tenant), given_priority(handling)
        return Demand(row_steps, num_images, num_bytes, tenant, share, priority, deadline)

    @contextlib.asynccontextmanager
    async def _place(
        self, handling: Handling, demand: Demand, steps: Sequence[tuple[Key, int]]
    ) -> AsyncGenerator[None]:
        """A place of the queue, for as long as the block lasts.

        Raises:
            DeadlineExceeded: it cannot be met, and the request takes no less than the whole, in time.
        """
        self._check_deadline(handling, demand, steps, self.queue.row_steps_before(demand))
        async with self.queue.place(demand):
            self._check_deadline(handling, demand, steps, 0)
            yield

    def _check_deadline(
        self, handling: Handling, demand: Demand, steps: Sequence[tuple[Key, int]], row_steps_before: float
    ) -> None:
        goes_on = handling.on_disconnect == gateway_pb2.ON_DISCONNECT_CONTINUE
        if math.isfinite(demand.deadline) and not handling.allow_partial and not goes_on:
            self.pace.check(steps, row_steps_before, demand.deadline - time.monotonic())


def _steps(parameters: Parameters, family: FamilyInfo) -> tuple[Key, int]:
    """What a generation's time depends on."""
    return pace_key(parameters, family), num_evaluations(parameters, family)
