"""Messages to generations and their events back to messages."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import structlog
import torch
from sfumato_protos.v1 import gateway_pb2, gateway_pb2_grpc

from sfumato.common import calls
from sfumato.common.calls import Context
from sfumato.common.errors import InvalidArgument, ResourceExhausted, Unavailable
from sfumato.gateway.access import Access
from sfumato.gateway.attention_messages import given_options, maps_message, options_message
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.compare_messages import resolved_settings
from sfumato.gateway.comparison import Comparison
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.edit_messages import edit_response, given_edit_fields
from sfumato.gateway.edit_parameters import resolve_edit
from sfumato.gateway.editing import EditorChannel, register_editing
from sfumato.gateway.generation import Attended, Event, Finished, Generation, Started, Stepped
from sfumato.gateway.guidance_messages import given_guidance, guidance_message, kind_value
from sfumato.gateway.message_parts import format_value, name_format, take_request_id, timings_message
from sfumato.gateway.parameters import FamilyInfo, Parameters, resolve
from sfumato.gateway.prompt_edits import PromptEdit
from sfumato.gateway.safety import Concept, read_concepts
from sfumato.gateway.sampling import SCHEDULERS, make_scheduler
from sfumato.gateway.stages import IMAGES_LIMIT, IMAGES_RUNNING, Seconds

log = structlog.get_logger()

METHODS = ("text-to-image", "image-to-image", "inpainting")
ATTENTION_METHODS = ("attention-maps", "prompt-to-prompt")


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Serves GatewayService."""

    service_name = "sfumato.v1.GatewayService"
    also_serves = ("sfumato.v1.EditorService", "google.longrunning.Operations")
    services: ModelServices
    family: FamilyInfo

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.admission = Access(settings)
        self.concepts: tuple[Concept, ...] = ()
        if settings.safety_concepts_file is not None:
            self.concepts = read_concepts(settings.safety_concepts_file.read_bytes())
        self.num_images = 0
        IMAGES_LIMIT.set(settings.max_concurrent_images)

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
                self.family = await self.services.family()
                # diffusers imports each scheduler at its first use: now, not in the first request.
                for name in SCHEDULERS:
                    make_scheduler(name, self.family.scheduler_config)
                return
            except (grpc.aio.AioRpcError, Unavailable) as error:
                log.info("waiting for the model services", error=str(error)[:200])
                # gRPC looks up a name that has no address ever more seldom: a new channel asks at once.
                await self.services.close()
                await asyncio.sleep(0.5)
                self.services = ModelServices(self.settings, self.concepts)

    async def close(self) -> None:
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
        side = self.family.sample_size * self.family.vae_scale_factor
        attention = ATTENTION_METHODS if self.family.num_cross_attention_layers else ()
        family = gateway_pb2.Family(
            name=self.family.name,
            methods=[*METHODS, *attention, *await self.editing.methods()],
            schedulers=[scheduler_value(name) for name in SCHEDULERS],
            default_width=side,
            default_height=side,
            size_multiple=self.family.vae_scale_factor,
            max_pixels=min(self.settings.max_pixels, self.family.max_pixels),
            max_tokens=self.family.max_tokens,
            guidance_kinds=[kind_value(kind) for kind in self.family.guidance_kinds],
        )
        return gateway_pb2.ListFamiliesResponse(families=[family])

    async def Generate(
        self, request: gateway_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.GenerateResponse]:
        take_request_id(request.request_id)
        parameters = resolve(given_fields(request), self.family, self.settings)
        with self._room_for(parameters.num_images):
            pixels = self.settings.max_input_pixels
            generation = Generation(parameters, self.family, self.services, pixels)
            async for event in generation.events():
                yield to_response(event, parameters, self.family)

    async def EditPrompt(
        self, request: gateway_pb2.EditPromptRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.EditPromptResponse]:
        take_request_id(request.request_id)
        parameters = resolve_edit(given_edit_fields(request), self.family, self.settings)
        with self._room_for(2):
            edit = PromptEdit(parameters, self.family, self.services)
            async for event in edit.events():
                yield edit_response(event, parameters, self.family)

    async def Compare(
        self, request: gateway_pb2.CompareRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.CompareResponse]:
        take_request_id(request.request.request_id)
        settings = resolved_settings(request, given_fields(request.request), self.family, self.settings)
        with self._room_for(settings[0].num_images):
            pixels = self.settings.max_input_pixels
            comparison = Comparison(settings, self.family, self.services, pixels)
            async for index, event in comparison.events():
                yield gateway_pb2.CompareResponse(
                    setting_index=index,
                    label=request.settings[index].label or str(index),
                    event=to_response(event, settings[index], self.family),
                )

    @contextlib.contextmanager
    def _room_for(self, num_images: int) -> Iterator[None]:
        """Counts the images that are sampled.

        Raises:
            ResourceExhausted: they would be too many at one time.
        """
        limit = self.settings.max_concurrent_images
        if self.num_images + num_images > limit:
            advice = "Try again when others are done."
            raise ResourceExhausted(
                "num_images", f"at most {limit} over all requests", self.num_images, advice
            )
        self.num_images += num_images
        IMAGES_RUNNING.set(self.num_images)
        try:
            yield
        finally:
            self.num_images -= num_images
            IMAGES_RUNNING.set(self.num_images)


def scheduler_value(name: str) -> gateway_pb2.Scheduler.ValueType:
    """The wire value of a sampler's name."""
    return gateway_pb2.Scheduler.Value(f"SCHEDULER_{name.upper()}")


def given_fields(request: gateway_pb2.GenerateRequest) -> dict[str, Any]:
    """The fields that the client set, enums by name ("dpmpp_2m", "PNG"), unknown ones as numbers."""
    given: dict[str, Any] = {descriptor.name: value for descriptor, value in request.ListFields()}
    given.pop("request_id", None)
    if "scheduler" in given:
        value = gateway_pb2.Scheduler.DESCRIPTOR.values_by_number.get(given["scheduler"])
        given["scheduler"] = (
            value.name.removeprefix("SCHEDULER_").lower() if value else str(given["scheduler"])
        )
    name_format(given)
    if "attention_maps" in given:
        given["attention_maps"] = given_options(given["attention_maps"])
    if "guidance" in given:
        given["guidance"] = given_guidance(given["guidance"])
    return given


def to_response(event: Event, p: Parameters, family: FamilyInfo) -> gateway_pb2.GenerateResponse:
    """An event as its message."""
    image_format = format_value(p.image_format)
    match event:
        case Started(num_steps, warnings):
            accepted = gateway_pb2.Accepted(
                request_id=calls.request_id.get(),
                parameters=resolved_request(p, family),
                num_steps=num_steps,
                warnings=warnings,
            )
            return gateway_pb2.GenerateResponse(accepted=accepted)
        case Stepped(image_index, step, num_steps, preview):
            done = gateway_pb2.StepDone(
                image_index=image_index, step=step, num_steps=num_steps, preview=preview
            )
            return gateway_pb2.GenerateResponse(step=done)
        case Attended():
            return gateway_pb2.GenerateResponse(attention_maps=maps_message(event))
        case Finished(index, seed, data):
            image = gateway_pb2.Image(
                index=index, seed=seed, data=data, image_format=image_format, width=p.width, height=p.height
            )
            return gateway_pb2.GenerateResponse(image=image)
        case Seconds():
            return gateway_pb2.GenerateResponse(done=gateway_pb2.Done(timings=timings_message(event)))


def resolved_request(p: Parameters, family: FamilyInfo) -> gateway_pb2.GenerateRequest:
    """The request with every default filled in, less the image and the mask."""
    return gateway_pb2.GenerateRequest(
        family=family.name,
        prompt=p.prompt,
        negative_prompt=p.negative_prompt,
        seed=p.seed,
        num_images=p.num_images,
        num_inference_steps=p.num_inference_steps,
        guidance_scale=p.guidance_scale if p.guidance.classifier_free else None,
        scheduler=scheduler_value(p.scheduler),
        width=p.width,
        height=p.height,
        strength=p.strength if p.image else None,
        preview_interval_steps=p.preview_interval_steps,
        image_format=format_value(p.image_format),
        request_id=calls.request_id.get(),
        attention_maps=options_message(p.attention) if p.attention else None,
        guidance=guidance_message(p.guidance),
    )
