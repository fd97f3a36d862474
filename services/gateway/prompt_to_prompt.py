"""Prompt-to-prompt's sampling: source and target side by side (Hertz et al. 2022, algorithm 1).

Both start from the same latents and are sampled with DDIM, eta 0, under classifier-free guidance. In the
first steps the denoiser injects the source's attention into the target. Local blend (the paper's section 3.2
and its code) keeps the source's latents where neither prompt's chosen words are attended to.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from sfumato.gateway.attention_maps import LayerMaps, Word, word_maps
from sfumato.gateway.guidance import classifier_free, finite

BLEND_THRESHOLD = 0.3  # of the words' map's maximum
BLEND_START = 0.2  # share of the steps after which the maps are good enough to blend by
BLEND_PIXELS = 16 * 16  # the largest level of attention that is used


class EditingDenoiser(Protocol):
    """An open stream whose attention is steered."""

    async def edit(
        self,
        step: int,
        latents: torch.Tensor,
        timestep: float,
        replace_cross: bool,
        replace_self: bool,
        attention: bool,
    ) -> tuple[torch.Tensor, list[list[LayerMaps]]]:
        """For latents [2, C, h, w] the predictions [4, C, h, w]: the null text's for source and target, then
        the source's and the target's own; and with attention both's maps."""


@dataclass(frozen=True)
class EditSchedule:
    """How strongly the target follows the source."""

    guidance_scale: float  # 1 or less: unguided
    cross_replace: float  # share of the steps, 0 to 1; the paper's 0.8
    self_replace: float  # share of the steps, 0 to 1; the paper's 0.4


@dataclass(frozen=True)
class EditStep:
    """What one step left of the source and the target: latents and the x0 that it predicts, [2, C, h, w]."""

    latents: torch.Tensor
    predicted_x0: torch.Tensor


async def sample_edit(
    schedule: EditSchedule,
    scheduler: Any,
    latents: torch.Tensor,
    denoiser: EditingDenoiser,
    blend: "LocalBlend | None",
) -> AsyncGenerator[EditStep]:
    """Yields the source and the target after each step.

    Args:
        schedule: guidance, and in which steps attention is injected.
        scheduler: a DDIMScheduler with its timesteps set.
        latents: [1, C, h, w], where both start.
        denoiser: the UNet, steered.
        blend: keeps the source outside of its words; None: everything may change.
    """
    both = latents.repeat(2, 1, 1, 1)
    num_steps = len(scheduler.timesteps)
    for index, timestep in enumerate(scheduler.timesteps):
        rows, maps = await denoiser.edit(
            index,
            both,
            float(timestep),
            index < round(schedule.cross_replace * num_steps),
            index < round(schedule.self_replace * num_steps),
            blend is not None,
        )
        noise_pred = rows[2:] if schedule.guidance_scale <= 1 else guided(rows, schedule.guidance_scale)
        stepped = scheduler.step(finite(noise_pred, index), timestep, both, eta=0.0)
        both, x0 = stepped.prev_sample, stepped.pred_original_sample
        if blend is not None:
            blend.see(maps)
            if index >= BLEND_START * num_steps:
                mask = blend.mask(*both.shape[2:])
                both, x0 = keep_source(both, mask), keep_source(x0, mask)
        yield EditStep(both, x0)


def guided(rows: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """[2, C, h, w] from the null text's predictions and the prompts' own [4, C, h, w]."""
    return torch.cat([classifier_free(rows[[i, i + 2]], guidance_scale) for i in range(2)])


class LocalBlend:
    """The mask of what may change: where either prompt's words are attended to, over the steps so far."""

    def __init__(self, source: Sequence[Word], target: Sequence[Word]) -> None:
        """The words of each prompt; none where a prompt does not have them."""
        self._words = (source, target)
        self._total: torch.Tensor | None = None

    def see(self, maps: list[list[LayerMaps]]) -> None:
        """Adds one step's maps of source and target."""
        seen = torch.stack(
            [
                word_maps(blend_level(levels).maps, words).sum(0)
                for levels, words in zip(maps, self._words, strict=True)
            ]
        )
        self._total = seen if self._total is None else self._total + seen

    def mask(self, height: int, width: int) -> torch.Tensor:
        """[1, 1, height, width] of 0 (keep the source) and 1."""
        assert self._total is not None
        wide = F.max_pool2d(self._total[None], 3, stride=1, padding=1)
        large = F.interpolate(wide, size=(height, width), mode="bilinear", align_corners=False)
        highest = large.amax((2, 3), keepdim=True).clamp(min=1e-12)
        return (large / highest > BLEND_THRESHOLD).any(1, keepdim=True).float()


def keep_source(both: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Puts the source's latents outside of the mask into the target's: [2, C, h, w]."""
    return torch.cat([both[:1], torch.where(mask > 0, both[1:], both[:1])])


def blend_level(levels: list[LayerMaps]) -> LayerMaps:
    """The largest level of at most 16x16, as in the paper; the smallest where all are larger."""
    return next((level for level in levels if level.maps[0].numel() <= BLEND_PIXELS), levels[-1])
