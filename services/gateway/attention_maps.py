"""Words' attention maps: Hertz et al. 2022, section 3.1, and Tang et al. 2022 (DAAM), equation 6.

The denoiser gives each step's cross-attention probabilities of the prompt's row, averaged over heads and over
the layers of one resolution. Here they are averaged over layers and steps, and a word's tokens are summed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from sfumato.common.errors import InvalidArgument

AGGREGATIONS = ("largest", "all")


@dataclass(frozen=True)
class Word:
    """A word of a prompt as written, and its tokens from start to before end."""

    text: str
    start_token: int
    end_token: int


@dataclass(frozen=True)
class LayerMaps:
    """Cross-attention [tokens, h, w] of one resolution, averaged over its heads and layers."""

    num_layers: int
    maps: torch.Tensor


@dataclass(frozen=True)
class AttentionOptions:
    """What a request asks for: AttentionMapOptions in gateway.proto."""

    interval_steps: int
    aggregation: str

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether the average is sent after this step, from 1: every so many, and the last."""
        return step == num_steps or bool(self.interval_steps and step % self.interval_steps == 0)


class AttentiveDenoiser(Protocol):
    """An open trajectory whose attention can be seen."""

    async def noise_pred_and_maps(
        self,
        step: int,
        latents: torch.Tensor,
        timestep: float,
        row: int,
        *,
        rows: Sequence[int] = (),
        keep_graph: bool = False,
    ) -> tuple[torch.Tensor, list[LayerMaps]]:
        """As Denoiser.noise_pred, and the row's maps by resolution, the largest first."""


def resolve_options(given: Mapping[str, Any] | None, num_layers: int) -> AttentionOptions | None:
    """The options of a request; None where it asks for no maps.

    Args:
        given: interval_steps and aggregation, only those that were set.
        num_layers: cross-attention layers of the family's UNet.

    Raises:
        InvalidArgument: a value out of range, or a family without cross-attention.
    """
    if given is None:
        return None
    check_has_attention("attention_maps", num_layers)
    interval, aggregation = int(given.get("interval_steps", 0)), given.get("aggregation", "largest")
    if not 0 <= interval <= 1000:
        raise InvalidArgument("attention_maps.interval_steps", "0 to 1000", interval)
    if aggregation not in AGGREGATIONS:
        raise InvalidArgument("attention_maps.aggregation", f"one of {', '.join(AGGREGATIONS)}", aggregation)
    return AttentionOptions(interval, aggregation)


def check_has_attention(field: str, num_layers: int) -> None:
    """Raises InvalidArgument where the family's UNet has no cross-attention."""
    if not num_layers:
        raise InvalidArgument(field, "left out: this family's UNet has no cross-attention", "given")


def aggregate(levels: Sequence[LayerMaps], aggregation: str, height: int, width: int) -> torch.Tensor:
    """One step's map of every token [tokens, h, w]: the largest level, or all enlarged to height x width."""
    if aggregation == "largest":
        return levels[0].maps
    total = sum(
        level.num_layers
        * F.interpolate(level.maps[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        for level in levels
    )
    assert isinstance(total, torch.Tensor)
    return total / sum(level.num_layers for level in levels)


def word_maps(token_maps: torch.Tensor, words: Sequence[Word]) -> torch.Tensor:
    """[words, h, w] from [tokens, h, w]: a word's tokens are summed."""
    maps = [token_maps[word.start_token : word.end_token].sum(0) for word in words]
    return torch.stack(maps) if maps else token_maps[:0]


class AttentionWatch:
    """Looks at one trajectory's steps and averages what it sees."""

    def __init__(
        self, denoiser: AttentiveDenoiser, row: int, words: Sequence[Word], aggregation: str
    ) -> None:
        """row: of the conditioning, the prompt's; words: the prompt's."""
        self.words = words
        self._denoiser = denoiser
        self._row = row
        self._aggregation = aggregation
        self._total = torch.zeros(())
        self._num_steps = 0

    async def noise_pred(
        self,
        step: int,
        latents: torch.Tensor,
        timestep: float,
        *,
        rows: Sequence[int] = (),
        keep_graph: bool = False,
    ) -> torch.Tensor:
        """In the place of the denoiser's own."""
        noise_pred, levels = await self._denoiser.noise_pred_and_maps(
            step, latents, timestep, self._row, rows=rows, keep_graph=keep_graph
        )
        self._total = self._total + aggregate(levels, self._aggregation, *latents.shape[2:])
        self._num_steps += 1
        return noise_pred

    def average(self) -> torch.Tensor:
        """float32 [words, h, w], 0 to 1, over the steps seen."""
        return word_maps(self._total / self._num_steps, self.words)
