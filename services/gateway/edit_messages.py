"""A prompt edit's messages to parameters, and its events back to messages."""

from typing import Any

from sfumato_protos.v1 import gateway_pb2

from sfumato.common import calls
from sfumato.gateway.edit_parameters import EditParameters
from sfumato.gateway.events import Finished, Stepped
from sfumato.gateway.message_parts import format_value, name_format, timings_message
from sfumato.gateway.parameters import FamilyInfo
from sfumato.gateway.prompt_edits import EditEvent, EditStarted
from sfumato.gateway.stages import Seconds


def given_edit_fields(request: gateway_pb2.EditPromptRequest) -> dict[str, Any]:
    """The fields that the client set, enums by name, unknown ones as numbers."""
    given: dict[str, Any] = {descriptor.name: value for descriptor, value in request.ListFields()}
    given.pop("request_id", None)
    name_format(given)
    if "kind" in given:
        value = gateway_pb2.EditKind.DESCRIPTOR.values_by_number.get(given["kind"])
        given["kind"] = value.name.removeprefix("EDIT_KIND_").lower() if value else str(given["kind"])
    if "weights" in given:
        given["weights"] = [
            (weight.word, weight.scale if weight.HasField("scale") else None) for weight in request.weights
        ]
    return given


def edit_response(
    event: EditEvent, parameters: EditParameters, family: FamilyInfo
) -> gateway_pb2.EditPromptResponse:
    """An event as its message."""
    p = parameters.source
    match event:
        case EditStarted():
            accepted = gateway_pb2.EditAccepted(
                request_id=calls.request_id.get(),
                parameters=resolved_edit(event.parameters, family),
                num_steps=event.num_steps,
                warnings=event.warnings,
            )
            return gateway_pb2.EditPromptResponse(accepted=accepted)
        case Stepped(image_index, step, num_steps):
            done = gateway_pb2.StepDone(image_index=image_index, step=step, num_steps=num_steps)
            return gateway_pb2.EditPromptResponse(step=done)
        case Finished(index, seed, data, step, num_steps):
            image = gateway_pb2.Image(
                index=index,
                seed=seed,
                data=data,
                image_format=format_value(p.image_format),
                width=p.width,
                height=p.height,
                partial=step < num_steps,
                step=step,
                num_steps=num_steps,
            )
            return gateway_pb2.EditPromptResponse(image=image)
        case Seconds():
            return gateway_pb2.EditPromptResponse(done=gateway_pb2.Done(timings=timings_message(event)))


def resolved_edit(parameters: EditParameters, family: FamilyInfo) -> gateway_pb2.EditPromptRequest:
    """The request with every default filled in, less the image."""
    p = parameters.source
    return gateway_pb2.EditPromptRequest(
        family=family.name,
        prompt=p.prompt,
        target_prompt=parameters.target_prompt,
        kind=gateway_pb2.EditKind.Value(f"EDIT_KIND_{parameters.kind.upper()}"),
        weights=[gateway_pb2.WordWeight(word=word, scale=c) for word, c in parameters.weights.items()],
        cross_replace=parameters.schedule.cross_replace,
        self_replace=parameters.schedule.self_replace,
        blend_words=parameters.blend_words,
        negative_prompt=p.negative_prompt,
        seed=None if p.image else p.seed,
        num_inference_steps=p.num_inference_steps,
        guidance_scale=p.guidance_scale,
        width=p.width,
        height=p.height,
        image_format=format_value(p.image_format),
        request_id=calls.request_id.get(),
    )
