"""A generation's messages to parameters, and its events back to messages."""

from typing import Any

from sfumato_protos.v1 import gateway_pb2

from sfumato.common import calls
from sfumato.gateway.attention_messages import given_options, maps_message, options_message
from sfumato.gateway.events import Attended, Event, Finished, Started, Stepped
from sfumato.gateway.guidance_messages import given_guidance, guidance_message
from sfumato.gateway.message_parts import format_value, name_format, timings_message
from sfumato.gateway.parameters import FamilyInfo, Parameters
from sfumato.gateway.stages import Seconds


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
    if "preview_kind" in given:
        kind = gateway_pb2.PreviewKind.DESCRIPTOR.values_by_number.get(given["preview_kind"])
        given["preview_kind"] = (
            kind.name.removeprefix("PREVIEW_KIND_").lower() if kind else str(given["preview_kind"])
        )
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
        case Finished(index, seed, data, step, num_steps, digests):
            image = gateway_pb2.Image(
                index=index,
                seed=seed,
                data=data,
                image_format=image_format,
                width=p.width,
                height=p.height,
                partial=step < num_steps,
                step=step,
                num_steps=num_steps,
                latents_digests=digests,
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
        preview_kind=gateway_pb2.PreviewKind.Value(f"PREVIEW_KIND_{p.preview_kind.upper()}"),
        image_format=format_value(p.image_format),
        request_id=calls.request_id.get(),
        attention_maps=options_message(p.attention) if p.attention else None,
        guidance=guidance_message(p.guidance),
        adapter=p.adapter,
    )
