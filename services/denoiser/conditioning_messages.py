"""The opening message of a Denoise stream to its conditioning, and a step's choice among its rows."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from sfumato_protos.v1 import denoiser_pb2

from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.common.tensors import check_finite, from_message
from sfumato.denoiser.conditioning import Conditioning, guidance_embedding, needed
from sfumato.denoiser.config import MAX_TOKENS

POOLED: tuple[Literal["pooled_prompt_embeds", "time_ids"], ...] = ("pooled_prompt_embeds", "time_ids")


def conditioning_of(request: denoiser_pb2.OpenTrajectory, config: Any, max_rows: int) -> Conditioning:
    """The rows of conditioning.

    Args:
        request: the message.
        config: the UNet's.
        max_rows: of a trajectory.

    Raises:
        InvalidArgument, ResourceExhausted: with field, limit and value.
    """
    width = config.cross_attention_dim
    limit = max_rows * MAX_TOKENS * width
    embeds = from_message(request.prompt_embeds, "open.prompt_embeds", (None, None, width), limit)
    if len(embeds) > max_rows:
        raise ResourceExhausted("open.prompt_embeds", f"at most {max_rows} rows", len(embeds))
    check_finite(embeds, "open.prompt_embeds")
    return Conditioning(embeds, **_beside(request, needed(config), len(embeds)))


def _beside(
    request: denoiser_pb2.OpenTrajectory, more: dict[str, tuple[int, ...]], rows: int
) -> dict[str, torch.Tensor]:
    """What the UNet takes beside prompt_embeds; what it does not take must not be given."""
    given: dict[str, torch.Tensor] = {}
    for name in POOLED:
        field = f"open.{name}"
        if request.HasField(name) != (name in more):
            wanted = "given" if name in more else "left out"
            raise InvalidArgument(field, f"{wanted} for this UNet", "the opposite")
        if name in more:
            shape = (rows, *more[name])
            given[name] = from_message(getattr(request, name), field, shape, math.prod(shape))
            check_finite(given[name], field)
    scale = request.guidance_scale
    if not 0 <= scale <= 100 or (scale and "timestep_cond" not in more):
        limit = "0 to 100" if "timestep_cond" in more else "left out for this UNet"
        raise InvalidArgument("open.guidance_scale", limit, scale)
    if "timestep_cond" in more:
        given["timestep_cond"] = guidance_embedding(scale, more["timestep_cond"][0], rows)
    return given


def selected(conditioning: Conditioning, rows: Sequence[int]) -> Conditioning:
    """The rows of conditioning that a step asks for; none named: all."""
    return conditioning[list(checked_rows(conditioning, rows, "step.rows"))] if rows else conditioning


def checked_rows(conditioning: Conditioning, rows: Sequence[int], field: str) -> Sequence[int]:
    """The rows that a step asks for; none named: all."""
    count = len(conditioning)
    if len(rows) > count or not all(0 <= row < count for row in rows):
        # As many as may be a million are not written out.
        given = f"{len(rows)} rows" if len(rows) > count else rows
        raise InvalidArgument(field, f"at most {count} of 0 to {count - 1}", given)
    return rows or range(len(conditioning))
