"""Python arguments to a Guidance message; guidance.proto has units, ranges and defaults."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from sfumato_protos.v1 import guidance_pb2

ImageFile = bytes | str | Path

_KINDS: dict[str, guidance_pb2.GuidanceKind.ValueType] = {
    name.removeprefix("GUIDANCE_KIND_").lower().replace("cfg_", "cfg+").replace("_", "-"): value
    for name, value in guidance_pb2.GuidanceKind.items()[1:]
}
_PATHS: dict[str, guidance_pb2.ClipPath.ValueType] = {
    name.removeprefix("CLIP_PATH_").lower().replace("_", "-"): value
    for name, value in guidance_pb2.ClipPath.items()[1:]
}
GUIDANCE_KINDS: tuple[str, ...] = tuple(_KINDS)
CLIP_PATHS: tuple[str, ...] = tuple(_PATHS)

# Option to field of Guidance, and of ClipGuidance.
_FIELDS = {"guidance_rescale": "rescale"}
_CLIP_FIELDS = {
    "clip_guidance_scale": "scale",
    "num_cutouts": "num_cutouts",
    "cut_power": "cut_power",
    "tv_scale": "tv_scale",
    "range_scale": "range_scale",
    "gradient_clamp": "gradient_clamp",
}
_CLIP_LISTS = {
    "clip_prompts": "prompts",
    "clip_prompt_weights": "prompt_weights",
    "image_prompt_weights": "image_prompt_weights",
}


class GuidanceOptions(TypedDict, total=False):
    """How the words steer. None is as good as left out."""

    guidance: str | None  # one of GUIDANCE_KINDS
    guidance_rescale: float | None
    guidance_interval: tuple[float, float] | None  # shares of the steps, from and to
    clip_guidance_scale: float | None
    clip_prompts: Sequence[str] | None
    clip_prompt_weights: Sequence[float] | None
    image_prompts: Sequence[ImageFile] | None
    image_prompt_weights: Sequence[float] | None
    num_cutouts: int | None
    cut_power: float | None
    tv_scale: float | None
    range_scale: float | None
    gradient_clamp: float | None
    clip_path: str | None  # one of CLIP_PATHS


def build_guidance(options: Mapping[str, Any]) -> guidance_pb2.Guidance | None:
    """The message of a request's guidance options, None where there are none; other options are passed over.

    Raises:
        ValueError: a kind or path of no such name.
        OSError: an image prompt that cannot be read.
    """
    given = {name: value for name, value in options.items() if name in OPTIONS and value is not None}
    if not given:
        return None
    message = guidance_pb2.Guidance()
    for name, value in given.items():
        if name == "guidance":
            message.kind = _named(_KINDS, "guidance", value)
        elif name == "guidance_interval":
            message.interval_start, message.interval_end = value
        elif name in _FIELDS:
            setattr(message, _FIELDS[name], value)
        elif name == "clip_path":
            message.clip.path = _named(_PATHS, "clip_path", value)
        elif name == "image_prompts":
            files = [file if isinstance(file, bytes) else Path(file).read_bytes() for file in value]
            message.clip.image_prompts.extend(files)
        elif name in _CLIP_LISTS:
            getattr(message.clip, _CLIP_LISTS[name]).extend(value)
        else:
            setattr(message.clip, _CLIP_FIELDS[name], value)
    return message


def kind_name(value: guidance_pb2.GuidanceKind.ValueType) -> str:
    """The name of a kind's wire value, such as "cfg+clip"."""
    return next((name for name, known in _KINDS.items() if known == value), "cfg")


def _named(values: Mapping[str, Any], option: str, name: str) -> Any:
    if name not in values:
        raise ValueError(f"{option} must be one of {', '.join(values)}, but is {name}")
    return values[name]


OPTIONS = frozenset(GuidanceOptions.__annotations__)
