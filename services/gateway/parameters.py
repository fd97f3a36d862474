"""A request's parameters: defaults resolved, limits checked before anything is allocated."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sfumato.common.errors import InvalidArgument, NotFound, ResourceExhausted
from sfumato.gateway.attention_maps import AttentionOptions, resolve_options
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.guidance import conditioning_texts
from sfumato.gateway.guidance_options import Guidance, check_family, kinds_of, resolve_guidance
from sfumato.gateway.previews import KINDS as PREVIEW_KINDS
from sfumato.gateway.sampling import SCHEDULERS, usual_sampling


@dataclass(frozen=True)
class FamilyInfo:
    """What the model services said of the family that they hold."""

    name: str
    latent_channels: int
    sample_size: int
    vae_scale_factor: int
    scaling_factor: float
    max_pixels: int
    max_tokens: int
    scheduler_config: dict[str, Any]
    num_cross_attention_layers: int = 0
    embedding_size: int = 0
    noised_clip: bool = False
    noised_clip_side: int = 0  # of the latents that it takes; 0: any
    num_time_ids: int = 0
    guidance_embedded: bool = False
    adapters: tuple[str, ...] = ()
    preview_projection: torch.Tensor | None = field(default=None, compare=False)  # None: none is given

    @property
    def guidance_kinds(self) -> list[str]:
        """Kinds of guidance that can be asked for."""
        return kinds_of(self.embedding_size, self.noised_clip)


@dataclass(frozen=True)
class Parameters:
    """A request as it will be run. Units, ranges and defaults: GenerateRequest in gateway.proto."""

    prompt: str
    negative_prompt: str
    seed: int
    num_images: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    strength: float
    preview_interval_steps: int
    image_format: str
    image: bytes
    mask: bytes
    attention: AttentionOptions | None = None
    guidance: Guidance = field(default_factory=Guidance)
    guidance_embedded: bool = False
    adapter: str = ""
    preview_kind: str = PREVIEW_KINDS[0]
    progress_interval_steps: int = 1

    def shows_progress(self, step: int, num_steps: int) -> bool:
        """Whether the client is told when `step` of `num_steps` is done."""
        interval = self.progress_interval_steps
        return interval > 0 and (step % interval == 0 or step == num_steps)

    @property
    def guided(self) -> bool:
        """Whether the null text is needed beside the prompt."""
        return self.guidance.classifier_free and self.guidance_scale > 1 and not self.guidance_embedded

    @property
    def sampled_share(self) -> float:
        """Of the schedule, at its end: strength, or all of it without an image to start from."""
        return self.strength if self.image else 1.0

    @property
    def conditioning_texts(self) -> list[str]:
        """Texts of the conditioning rows."""
        if not self.guidance.classifier_free:
            return [""]
        return conditioning_texts(self.prompt, self.negative_prompt, self.guided)

    @property
    def prompt_row(self) -> int:
        """The prompt's row of the conditioning."""
        return 1 if self.guided else 0


def resolve(given: Mapping[str, Any], family: FamilyInfo, settings: GatewaySettings) -> Parameters:
    """Parameters from the fields that a request set.

    Args:
        given: field name to value, only those that were set.
        family: the one that will run it.
        settings: the limits.

    Raises:
        InvalidArgument, ResourceExhausted, NotFound: with field, limit and value.
    """
    side = family.sample_size * family.vae_scale_factor
    image, mask = given.get("image", b""), given.get("mask", b"")
    num_images = _whole(given, "num_images", 1, 1, settings.max_num_images)
    usual = usual_sampling(family.scheduler_config)
    prompt = _text(given, "prompt", settings.max_prompt_characters)
    parameters = Parameters(
        prompt=prompt,
        negative_prompt=_text(given, "negative_prompt", settings.max_prompt_characters),
        seed=_whole(given, "seed", secrets.randbits(32), 0, 2**63 - 1 - num_images),
        num_images=num_images,
        num_inference_steps=_whole(
            given, "num_inference_steps", usual.num_inference_steps, 1, settings.max_num_inference_steps
        ),
        guidance_scale=_real(given, "guidance_scale", usual.guidance_scale, 0, 100),
        scheduler=given.get("scheduler", usual.scheduler),
        width=_side(given, "width", side, family),
        height=_side(given, "height", side, family),
        strength=_real(given, "strength", 1.0 if mask else 0.8, 0, 1),
        preview_interval_steps=_whole(given, "preview_interval_steps", 0, 0, 1000),
        image_format=given.get("image_format", "PNG"),
        image=image,
        mask=mask,
        attention=resolve_options(given.get("attention_maps"), family.num_cross_attention_layers),
        guidance=resolve_guidance(
            given.get("guidance", {}), prompt, settings.max_prompt_characters, settings.max_image_bytes
        ),
        guidance_embedded=family.guidance_embedded,
        adapter=_adapter(given.get("adapter", ""), family),
        preview_kind=given.get("preview_kind", PREVIEW_KINDS[0]),
        progress_interval_steps=_whole(given, "progress_interval_steps", 1, 0, 1000),
    )
    _check(parameters, given, family, settings)
    return parameters


def _check(
    parameters: Parameters, given: Mapping[str, Any], family: FamilyInfo, settings: GatewaySettings
) -> None:
    """What concerns several fields, or none of the numbers."""
    if not parameters.prompt.strip():
        raise InvalidArgument("prompt", "1 or more characters", "empty", "Say what the image shows.")
    if parameters.scheduler not in SCHEDULERS:
        raise InvalidArgument("scheduler", f"one of {', '.join(SCHEDULERS)}", parameters.scheduler)
    if parameters.preview_kind not in PREVIEW_KINDS:
        raise InvalidArgument("preview_kind", f"one of {', '.join(PREVIEW_KINDS)}", parameters.preview_kind)
    max_pixels = min(settings.max_pixels, family.max_pixels)
    if parameters.width * parameters.height > max_pixels:
        asked = f"{parameters.width}x{parameters.height}"
        raise InvalidArgument("width x height", f"at most {max_pixels} pixels", asked)
    for name, data in (("image", parameters.image), ("mask", parameters.mask)):
        if len(data) > settings.max_image_bytes:
            raise ResourceExhausted(name, f"at most {settings.max_image_bytes} bytes", f"{len(data)} bytes")
    check_family(parameters.guidance, family.embedding_size, family.noised_clip)
    if parameters.guidance.noised and family.noised_clip_side:
        side = family.noised_clip_side * family.vae_scale_factor
        for name, value in (("width", parameters.width), ("height", parameters.height)):
            if value != side:
                raise InvalidArgument(name, f"{side}, the size of the noise-aware CLIP", value)
    if not parameters.guidance.classifier_free:
        for name in ("guidance_scale", "negative_prompt", "attention_maps"):
            if name in given:
                advice = f"Guidance {parameters.guidance.kind} does not show the prompt to the UNet."
                raise InvalidArgument(name, "left out", given[name], advice)
    if parameters.mask and not parameters.image:
        raise InvalidArgument("mask", "given together with image", "given alone")
    if "strength" in given and not parameters.image:
        raise InvalidArgument("strength", "given together with image", given["strength"])
    if parameters.image and parameters.strength == 0:
        raise InvalidArgument("strength", "above 0 and at most 1", parameters.strength)


def _adapter(name: str, family: FamilyInfo) -> str:
    if name and name not in family.adapters:
        known = ", ".join(family.adapters) or "none"
        raise NotFound(f"no adapter {name!r:.60}; {family.name} has {known}", field="adapter",
                       limit=known, value=name)  # fmt: skip
    return name


def _whole(given: Mapping[str, Any], field: str, default: int, low: int, high: int) -> int:
    value = int(given.get(field, default))
    if not low <= value <= high:
        raise InvalidArgument(field, f"{low} to {high}", value)
    return value


def _real(given: Mapping[str, Any], field: str, default: float, low: float, high: float) -> float:
    value = float(given.get(field, default))
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidArgument(field, f"a number from {low} to {high}", value)
    return value


def _text(given: Mapping[str, Any], field: str, limit: int) -> str:
    text = str(given.get(field, ""))
    if len(text) > limit:
        raise InvalidArgument(field, f"at most {limit} characters", f"{len(text)} characters")
    return text


def _side(given: Mapping[str, Any], field: str, default: int, family: FamilyInfo) -> int:
    value = int(given.get(field, default))
    if value < 1 or value % family.vae_scale_factor:
        raise InvalidArgument(field, f"a positive multiple of {family.vae_scale_factor}", value)
    return value
