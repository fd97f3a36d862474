"""A prompt edit's parameters: defaults resolved, limits checked before anything is allocated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.common.errors import FailedPrecondition, InvalidArgument
from sfumato.gateway.alignment import MAX_WEIGHT
from sfumato.gateway.attention_maps import check_has_attention
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.parameters import FamilyInfo, Parameters, resolve
from sfumato.gateway.prompt_to_prompt import EditSchedule

MAX_WORDS = 64
NUM_INFERENCE_STEPS = 50  # the paper's
OWN_FIELDS = ("target_prompt", "kind", "weights", "cross_replace", "self_replace", "blend_words")


@dataclass(frozen=True)
class EditParameters:
    """An edit as it will be run. Units, ranges and defaults: EditPromptRequest in gateway.proto.

    Attributes:
        source: how the source is made: prompt, seed, steps, size, image.
        kind: "replace", "refine", or "" until the words are known.
        weights: c of each phrase.
    """

    source: Parameters
    target_prompt: str
    kind: str
    weights: dict[str, float]
    schedule: EditSchedule
    blend_words: tuple[str, ...]

    @property
    def null_text(self) -> str:
        """What takes the null text's place: with an image its own prompt (Miyake et al. 2023, negative-prompt
        inversion), so that the source's guided path is the inversion's, whatever the scale."""
        return self.source.prompt if self.source.image else self.source.negative_prompt


def resolve_edit(given: Mapping[str, Any], family: FamilyInfo, settings: GatewaySettings) -> EditParameters:
    """Parameters from the fields that a request set, as parameters.resolve.

    Raises:
        InvalidArgument, ResourceExhausted, NotFound: with field, limit and value.
    """
    check_has_attention("target_prompt", family.num_cross_attention_layers)
    if family.guidance_embedded:
        raise FailedPrecondition(
            f"{family.name} takes the guidance scale as an input, so it has no null text to edit against",
            field="target_prompt", limit="a family without guidance embedding", value=family.name,
        )  # fmt: skip
    common = {name: value for name, value in given.items() if name not in OWN_FIELDS}
    common = {"num_inference_steps": NUM_INFERENCE_STEPS, **common, "scheduler": "ddim"}
    if common.get("image"):
        for field in ("negative_prompt", "seed"):
            if field in common:
                raise InvalidArgument(field, "left out with image", common[field])
    target = str(given.get("target_prompt", ""))
    if not target.strip() or len(target) > settings.max_prompt_characters:
        limit = f"1 to {settings.max_prompt_characters} characters"
        raise InvalidArgument("target_prompt", limit, f"{len(target)} characters")
    source = resolve(common, family, settings)
    return EditParameters(
        source=source,
        target_prompt=target,
        kind=given.get("kind", ""),
        weights=_weights(given.get("weights", ())),
        schedule=EditSchedule(
            source.guidance_scale, _share(given, "cross_replace", 0.8), _share(given, "self_replace", 0.4)
        ),
        blend_words=_phrases(given.get("blend_words", ())),
    )


def _weights(given: Any) -> dict[str, float]:
    """(word, scale) pairs, a missing scale None."""
    _check_count("weights", len(given))
    for word, scale in given:
        if scale is None or not (math.isfinite(scale) and -MAX_WEIGHT <= scale <= MAX_WEIGHT):
            limit = f"a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g} for {word!r:.40}"
            raise InvalidArgument("weights.scale", limit, scale)
    return dict(given)


def _phrases(given: Any) -> tuple[str, ...]:
    _check_count("blend_words", len(given))
    return tuple(given)


def _check_count(field: str, count: int) -> None:
    if count > MAX_WORDS:
        raise InvalidArgument(field, f"at most {MAX_WORDS}", count)


def _share(given: Mapping[str, Any], field: str, default: float) -> float:
    value = float(given.get(field, default))
    if not 0 <= value <= 1:
        raise InvalidArgument(field, "a number from 0 to 1", value)
    return value
