"""A request's guidance: defaults resolved, options that do not go with the kind refused."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

NONE, CFG, CLIP, NOISED_CLIP = "none", "cfg", "clip", "noised_clip"
KINDS = (NONE, CFG, CLIP, NOISED_CLIP, "cfg_clip", "cfg_noised_clip")
PREDICTED_X0, CONSTANT_NOISE, NOISY_LATENTS = "predicted_x0", "constant_noise", "noisy_latents"
PATHS = (PREDICTED_X0, CONSTANT_NOISE, NOISY_LATENTS)
IMAGE_OPTIONS = ("num_cutouts", "cut_power", "tv_scale", "range_scale", "path")

MAX_TARGETS = 64
MAX_WEIGHT = 100.0
MAX_SCALE = 1e6


@dataclass(frozen=True)
class ClipOptions:
    """ClipGuidance in guidance.proto has units, ranges and defaults."""

    prompts: tuple[str, ...]
    prompt_weights: tuple[float, ...]
    image_prompts: tuple[bytes, ...]
    image_prompt_weights: tuple[float, ...]
    scale: float
    num_cutouts: int
    cut_power: float
    tv_scale: float
    range_scale: float
    gradient_clamp: float
    path: str


@dataclass(frozen=True)
class Guidance:
    """Guidance in guidance.proto has units, ranges and defaults."""

    kind: str = CFG
    rescale: float = 0.0
    interval_start: float = 0.0
    interval_end: float = 1.0
    clip: ClipOptions | None = None

    @property
    def classifier_free(self) -> bool:
        """Whether the UNet sees the prompt."""
        return self.kind.startswith(CFG)

    @property
    def noised(self) -> bool:
        """Whether the noise-aware CLIP steers."""
        return self.kind.endswith(NOISED_CLIP)

    def is_active(self, index: int, num_steps: int) -> bool:
        """Whether evaluation `index` of `num_steps` lies in the interval."""
        return self.interval_start <= index / num_steps < self.interval_end


def resolve_guidance(
    given: Mapping[str, Any], prompt: str, max_characters: int, max_image_bytes: int
) -> Guidance:
    """Guidance from the fields that a request set.

    Args:
        given: field name to value; kind and path by name, clip as a mapping.
        prompt: the request's.
        max_characters: of a prompt.
        max_image_bytes: of an image prompt.

    Raises:
        InvalidArgument, ResourceExhausted: with field, limit and value.
    """
    kind = given.get("kind", CFG)
    if kind not in KINDS:
        raise InvalidArgument("guidance.kind", f"one of {', '.join(KINDS)}", kind)
    if "rescale" in given and not kind.startswith(CFG):
        raise InvalidArgument("guidance.rescale", "left out", given["rescale"], f"{kind} has no CFG.")
    start = _real(given, "guidance.interval_start", 0.0, 0, 1)
    clip_given = given.get("clip")
    if clip_given is not None and kind in (NONE, CFG):
        raise InvalidArgument("guidance.clip", "left out", "given", f"{kind} does not use CLIP.")
    clip = None
    if kind not in (NONE, CFG):
        clip = _clip(clip_given or {}, kind, prompt, max_characters, max_image_bytes)
    return Guidance(
        kind=kind,
        rescale=_real(given, "guidance.rescale", 0.0, 0, 1),
        interval_start=start,
        interval_end=_real(given, "guidance.interval_end", 1.0, start, 1),
        clip=clip,
    )


def kinds_of(embedding_size: int, noised_clip: bool) -> list[str]:
    """Kinds that a family can be asked for; embedding_size is 0 where it has no clip/."""
    return [
        kind
        for kind in KINDS
        if kind in (NONE, CFG) or (noised_clip if kind.endswith(NOISED_CLIP) else embedding_size > 0)
    ]


def check_family(guidance: Guidance, embedding_size: int, noised_clip: bool) -> None:
    """Raises FailedPrecondition where the family lacks what the kind needs."""
    for needed, part, exists in (
        (guidance.clip is not None and not guidance.noised, "clip/", embedding_size > 0),
        (guidance.noised, "clip_noised/", noised_clip),
    ):
        if needed and not exists:
            raise FailedPrecondition(
                f"guidance {guidance.kind} needs a family with {part}, and this one has none; "
                f"choose another kind",
                field="guidance.kind", limit=f"a kind that needs no {part}", value=guidance.kind,
            )  # fmt: skip


def _clip(
    given: Mapping[str, Any], kind: str, prompt: str, max_characters: int, max_image_bytes: int
) -> ClipOptions:
    if kind.endswith(NOISED_CLIP):
        for name in IMAGE_OPTIONS:
            if name in given:
                advice = f"{kind} looks at latents, not at the image."
                raise InvalidArgument(f"guidance.clip.{name}", "left out", given[name], advice)
    prompts = tuple(given.get("prompts", ())) or (prompt,)
    images = tuple(given.get("image_prompts", ()))
    if len(prompts) + len(images) > MAX_TARGETS:
        limit = f"at most {MAX_TARGETS} with image_prompts"
        raise ResourceExhausted("guidance.clip.prompts", limit, len(prompts) + len(images))
    for index, text in enumerate(prompts):
        if not 0 < len(text.strip()) <= len(text) <= max_characters:
            limit = f"1 to {max_characters} characters"
            raise InvalidArgument(f"guidance.clip.prompts[{index}]", limit, f"{len(text)} characters")
    for index, data in enumerate(images):
        if len(data) > max_image_bytes:
            field = f"guidance.clip.image_prompts[{index}]"
            raise ResourceExhausted(field, f"at most {max_image_bytes} bytes", f"{len(data)} bytes")
    path = given.get("path", PREDICTED_X0)
    if path not in PATHS:
        raise InvalidArgument("guidance.clip.path", f"one of {', '.join(PATHS)}", path)
    num_cutouts = int(given.get("num_cutouts", 4))
    if not 1 <= num_cutouts <= 128:
        raise InvalidArgument("guidance.clip.num_cutouts", "1 to 128", num_cutouts)
    cut_power = _real(given, "guidance.clip.cut_power", 1.0, 0, 16)
    if cut_power == 0:
        raise InvalidArgument("guidance.clip.cut_power", "above 0, up to 16", cut_power)
    return ClipOptions(
        prompts=prompts,
        prompt_weights=_weights(given, "prompt_weights", "prompts", len(prompts)),
        image_prompts=images,
        image_prompt_weights=_weights(given, "image_prompt_weights", "image_prompts", len(images)),
        scale=_real(given, "guidance.clip.scale", 300.0, 0, MAX_SCALE),
        num_cutouts=num_cutouts,
        cut_power=cut_power,
        tv_scale=_real(given, "guidance.clip.tv_scale", 0.0, 0, MAX_SCALE),
        range_scale=_real(given, "guidance.clip.range_scale", 0.0, 0, MAX_SCALE),
        gradient_clamp=_real(given, "guidance.clip.gradient_clamp", 1.0, 0, MAX_SCALE),
        path=path,
    )


def _weights(given: Mapping[str, Any], name: str, of: str, count: int) -> tuple[float, ...]:
    weights: Sequence[float] = given.get(name) or [1.0] * count
    field = f"guidance.clip.{name}"
    if len(weights) != count:
        raise InvalidArgument(field, f"as many as {of}, {count}", len(weights), "Give one weight for each.")
    for index, weight in enumerate(weights):
        if not abs(weight) <= MAX_WEIGHT:
            limit = f"a number from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
            raise InvalidArgument(f"{field}[{index}]", limit, weight)
    return tuple(float(weight) for weight in weights)


def _real(given: Mapping[str, Any], field: str, default: float, low: float, high: float) -> float:
    value = float(given.get(field.rpartition(".")[2], default))
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidArgument(field, f"a number from {low:g} to {high:g}", value)
    return value
