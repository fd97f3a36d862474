"""Guidance messages to the fields that were set, and resolved guidance back to a message."""

from typing import Any

from sfumato_protos.v1 import guidance_pb2

from sfumato.gateway.guidance_options import NOISED_CLIP, Guidance


def given_guidance(message: guidance_pb2.Guidance) -> dict[str, Any]:
    """The fields that the client set, kind and path by name, unknown ones as numbers."""
    given: dict[str, Any] = {descriptor.name: value for descriptor, value in message.ListFields()}
    if "kind" in given:
        given["kind"] = _name(guidance_pb2.GuidanceKind.DESCRIPTOR, "GUIDANCE_KIND_", given["kind"])
    if "clip" in given:
        clip: dict[str, Any] = {descriptor.name: value for descriptor, value in message.clip.ListFields()}
        if "path" in clip:
            clip["path"] = _name(guidance_pb2.ClipPath.DESCRIPTOR, "CLIP_PATH_", clip["path"])
        given["clip"] = clip
    return given


def kind_value(kind: str) -> guidance_pb2.GuidanceKind.ValueType:
    """The wire value of a kind's name."""
    return guidance_pb2.GuidanceKind.Value(f"GUIDANCE_KIND_{kind.upper()}")


def guidance_message(guidance: Guidance) -> guidance_pb2.Guidance:
    """Guidance with every default filled in that goes with its kind, less the image prompts' bytes."""
    message = guidance_pb2.Guidance(
        kind=kind_value(guidance.kind),
        rescale=guidance.rescale if guidance.classifier_free else None,
        interval_start=guidance.interval_start,
        interval_end=guidance.interval_end,
    )
    clip = guidance.clip
    if clip is None:
        return message
    message.clip.prompts.extend(clip.prompts)
    message.clip.prompt_weights.extend(clip.prompt_weights)
    message.clip.image_prompt_weights.extend(clip.image_prompt_weights)
    message.clip.scale = clip.scale
    message.clip.gradient_clamp = clip.gradient_clamp
    if not guidance.kind.endswith(NOISED_CLIP):
        for name in ("num_cutouts", "cut_power", "tv_scale", "range_scale"):
            setattr(message.clip, name, getattr(clip, name))
        message.clip.path = guidance_pb2.ClipPath.Value(f"CLIP_PATH_{clip.path.upper()}")
    return message


def _name(enum: Any, prefix: str, number: int) -> str:
    value = enum.values_by_number.get(number)
    return value.name.removeprefix(prefix).lower() if value else str(number)
