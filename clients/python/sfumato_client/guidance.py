"""Python arguments to a Guidance message; guidance.proto has units, ranges and defaults."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from sfumato_protos.v1 import guidance_pb2

from sfumato_client.fields import naming

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

    guidance: str | None  # one of GUIDANCE_KINDS. Default "cfg"
    guidance_rescale: float | None  # with cfg, 0 to 1. Default 0
    guidance_interval: tuple[float, float] | None  # shares of the steps, from and to. Default (0, 1)
    clip_guidance_scale: float | None  # with clip or noised-clip, 0 to 1,000,000. Default 300
    clip_prompts: Sequence[str] | None  # texts to steer by, up to 64 with image_prompts. Default: the prompt
    clip_prompt_weights: Sequence[float] | None  # of each, -100 to 100; below 0 pushes away. Default 1
    image_prompts: Sequence[ImageFile] | None  # images to look like, bytes or paths. Default: none
    image_prompt_weights: Sequence[float] | None  # of each, -100 to 100. Default 1
    num_cutouts: int | None  # with clip: crops that CLIP sees, 1 to 128; 1: the whole image. Default 4
    cut_power: float | None  # with clip: larger, smaller crops. Above 0, up to 16. Default 1
    tv_scale: float | None  # with clip: smoothness, 0 to 1,000,000. Default 0
    range_scale: float | None  # with clip: keeps pixels within their range, 0 to 1,000,000. Default 0
    gradient_clamp: float | None  # largest root mean square of a step's, 0 to 1,000,000; 0: any. Default 1
    clip_path: str | None  # with clip: what it looks at, one of CLIP_PATHS. Default "predicted-x0"


def build_guidance(options: Mapping[str, Any]) -> guidance_pb2.Guidance | None:
    """The message of a request's guidance options, None where there are none; other options are passed over.

    Raises:
        TypeError, ValueError: a kind or path of no such name, or a value that is none.
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
            with naming(name):
                message.interval_start, message.interval_end = value
        elif name in _FIELDS:
            with naming(name):
                setattr(message, _FIELDS[name], value)
        elif name == "clip_path":
            message.clip.path = _named(_PATHS, "clip_path", value)
        elif name == "image_prompts":
            files = [file if isinstance(file, bytes) else Path(file).read_bytes() for file in value]
            message.clip.image_prompts.extend(files)
        elif name in _CLIP_LISTS:
            with naming(name):
                getattr(message.clip, _CLIP_LISTS[name]).extend(value)
        else:
            with naming(name):
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
