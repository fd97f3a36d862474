"""What a sampler's configuration and number of steps decide: made once, then shared by all trajectories."""

import asyncio
import copy
import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from sfumato.common.errors import InvalidArgument
from sfumato.gateway.linear_updates import Update, linear_updates
from sfumato.gateway.parameters import Parameters
from sfumato.gateway.sampling import make_scheduler, noise_levels, not_taken, num_timesteps, set_timesteps

MAX_KEPT_STEPS = 10_000  # of all schedules: some kilobytes each

# By sampler, configuration, number of steps, how many of them are run, and whether strength chose these.
_kept: dict[tuple[str, str, int, int, bool], "Schedule"] = {}


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
    """The schedule of a request.

    Raises:
        InvalidArgument: as set_timesteps; or the sampler's steps fail with this configuration.
    """
    count, share = p.num_inference_steps, p.sampled_share
    # Not by the share itself, of which there are any number that leave the same steps.
    num_run = num_timesteps(p.scheduler, scheduler_config, count, share)
    key = (p.scheduler, json.dumps(scheduler_config), count, num_run, share < 1)
    if key not in _kept:
        # Some milliseconds; for LMS, which integrates its coefficients, a fifth of a second.
        made = await asyncio.to_thread(_make, p.scheduler, scheduler_config, count, share)
        _keep(key, made)
        return made
    return _kept[key]


def _keep(key: tuple[str, str, int, int, bool], made: Schedule) -> None:
    """The oldest go, until all have at most MAX_KEPT_STEPS."""
    _kept[key] = made
    num_steps = sum(len(one.timesteps) for one in _kept.values())
    while num_steps > MAX_KEPT_STEPS:
        num_steps -= len(_kept.pop(next(iter(_kept))).timesteps)


def _make(name: str, scheduler_config: dict[str, Any], num_inference_steps: int, share: float) -> Schedule:
    scheduler = make_scheduler(name, scheduler_config)
    timesteps = set_timesteps(scheduler, num_inference_steps, share)
    try:
        updates = linear_updates(copy.deepcopy(scheduler), timesteps)
    except (IndexError, AssertionError, ValueError) as error:  # two of its timesteps are one
        raise not_taken(scheduler, num_inference_steps, error) from error
    except NotImplementedError as error:  # its prediction type
        raise _not_with_family(name, str(error)[:200]) from error
    if updates is not None and not all(map(_is_finite, updates)):
        raise _not_with_family(name, "It divides by zero")
    return Schedule(scheduler, timesteps, noise_levels(scheduler, timesteps), updates)


def _is_finite(update: Update) -> bool:
    return all(math.isfinite(coefficient) for _, terms in update.sums for _, coefficient in terms)


def _not_with_family(name: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        "scheduler", "one that can step with the family's scheduler_config.json", name, why
    )
