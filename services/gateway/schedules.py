"""What a sampler's configuration and number of steps decide: made once, then shared by all trajectories."""

import asyncio
import copy
import json
from dataclasses import dataclass
from typing import Any

import torch

from sfumato.gateway.linear_updates import Update, linear_updates
from sfumato.gateway.parameters import Parameters
from sfumato.gateway.sampling import make_scheduler, noise_levels, not_taken, set_timesteps

MAX_KEPT = 512

_kept: dict[tuple[str, str, int, float], "Schedule"] = {}


@dataclass(frozen=True)
class Schedule:
    """Of a sampler.

    Attributes:
        scheduler: diffusers', with its timesteps set; shared, so whoever steps it takes a copy.
        timesteps: to run, [steps].
        noise_levels: abar of the latents at each.
        updates: what each step does; None where it is not linear.
    """

    scheduler: Any
    timesteps: torch.Tensor
    noise_levels: list[float]
    updates: tuple[Update, ...] | None


async def schedule_of(p: Parameters, scheduler_config: dict[str, Any]) -> Schedule:
    """The schedule of a request. Raises as set_timesteps."""
    key = (p.scheduler, json.dumps(scheduler_config), p.num_inference_steps, p.sampled_share)
    if key not in _kept:
        # Some milliseconds; for LMS, which integrates its coefficients, a fifth of a second.
        made = await asyncio.to_thread(_make, p.scheduler, scheduler_config, *key[2:])
        if len(_kept) >= MAX_KEPT:
            _kept.clear()
        _kept[key] = made
    return _kept[key]


def _make(name: str, scheduler_config: dict[str, Any], num_inference_steps: int, share: float) -> Schedule:
    scheduler = make_scheduler(name, scheduler_config)
    timesteps = set_timesteps(scheduler, num_inference_steps, share)
    try:
        updates = linear_updates(copy.deepcopy(scheduler), timesteps)
    except (IndexError, AssertionError, ValueError) as error:  # two of its timesteps are one
        raise not_taken(scheduler, num_inference_steps, error) from error
    return Schedule(scheduler, timesteps, noise_levels(scheduler, timesteps), updates)
