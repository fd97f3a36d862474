"""Samplers as sums of latents, predictions and noise: what diffusers does, in runs or step by step."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sfumato.common.errors import InvalidArgument
from sfumato.common.linear_steps import LinearRun, RunResult, latents_digest
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.runs import do_run
from sfumato.gateway import schedules
from sfumato.gateway.linear_trajectory import LinearTrajectory, Mix
from sfumato.gateway.linear_updates import Update
from sfumato.gateway.linear_updates import linear_updates as updates_of
from sfumato.gateway.sampling import SCHEDULERS, make_scheduler, set_timesteps, step_options
from sfumato.gateway.schedules import schedule_of
from tests.unit.test_guidance import CONFIG

SHAPE = (1, 4, 8, 8)
NULL, PROMPT = 0.3, -0.4  # the rows of conditioning of the UNet below
MIX = Mix((), (-2.0, 3.0))  # guidance_scale 3


def unet(model_input: torch.Tensor, timestep: float, row: float) -> torch.Tensor:
    """Any function of what a UNet takes."""
    return torch.tanh(model_input * (1 + row) + timestep / 1000) + 0.1 * torch.sin(9 * model_input + row)


def prediction(model_input: torch.Tensor, timestep: float) -> torch.Tensor:
    """Of MIX."""
    return unet(model_input, timestep, NULL) * -2.0 + unet(model_input, timestep, PROMPT) * 3.0


class Queue:
    """The denoiser's, of that UNet."""

    async def noise_pred(
        self, _: Any, latents: torch.Tensor, timestep: float, conditioning: Conditioning
    ) -> torch.Tensor:
        await asyncio.sleep(0)
        return torch.cat([unet(latents, timestep, float(row)) for row in conditioning.prompt_embeds])


def start(scheduler: Any) -> tuple[torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma, generator


def linear_updates(
    name: str, config: dict[str, Any], num_steps: int, strength: float
) -> tuple[Update, ...] | None:
    scheduler = make_scheduler(name, config)
    return updates_of(scheduler, set_timesteps(scheduler, num_steps, strength))


def by_diffusers(name: str, config: dict[str, Any], num_steps: int, strength: float) -> torch.Tensor:
    scheduler = make_scheduler(name, config)
    latents, generator = start(scheduler)
    for timestep in set_timesteps(scheduler, num_steps, strength):
        predicted = prediction(scheduler.scale_model_input(latents, timestep), float(timestep))
        options = step_options(scheduler, generator)
        latents = scheduler.step(predicted, timestep, latents, **options, return_dict=False)[0]
    return latents


async def by_updates(
    updates: Sequence[Update], name: str, config: dict[str, Any], lengths: Sequence[int]
) -> tuple[torch.Tensor, list[bytes]]:
    """The last latents, and the digests of all; lengths: of runs, over and over; 1: a step in the gateway."""
    trajectory = LinearTrajectory(updates, *start(make_scheduler(name, config)))
    conditioning = Conditioning(torch.tensor([NULL, PROMPT]).reshape(2, 1, 1))

    async def denoise(run: LinearRun) -> RunResult:
        return await do_run(Queue(), None, run, conditioning)  # type: ignore[arg-type]

    digests: list[bytes] = []
    turn = 0
    while (index := len(digests)) < len(updates):
        length = min(lengths[turn % len(lengths)], len(updates) - index)
        turn += 1
        if length == 1:
            trajectory.step(index, prediction(trajectory.model_input(index), updates[index].timestep))
            digests.append(latents_digest(trajectory.latents.numpy()))
        else:
            digests += (await trajectory.run(index, [MIX] * length, denoise)).latents_digests
    return trajectory.latents, digests


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
async def test_every_sampler_does_what_diffusers_does(
    name: str, prediction_type: str, strength: float
) -> None:
    config = {**CONFIG, "prediction_type": prediction_type}
    expected = by_diffusers(name, config, 20, strength)
    updates = linear_updates(name, config, 20, strength)
    assert updates is not None
    latents, _ = await by_updates(updates, name, config, [1])
    assert torch.allclose(latents, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", SCHEDULERS)
async def test_the_bits_do_not_depend_on_how_steps_are_put_in_runs(name: str) -> None:
    updates = linear_updates(name, CONFIG, 20, 1.0)
    assert updates is not None
    latents, digests = await by_updates(updates, name, CONFIG, [1])
    assert len(digests) == len(set(digests)) == len(updates)
    for lengths in ([40], [2], [7, 1, 3]):
        in_runs, digests_of_runs = await by_updates(updates, name, CONFIG, lengths)
        assert torch.equal(in_runs, latents)
        assert digests_of_runs == digests


@pytest.mark.parametrize("name", SCHEDULERS)
async def test_no_more_tensors_are_held_than_later_steps_take(name: str) -> None:
    updates = linear_updates(name, CONFIG, 50, 1.0)
    assert updates is not None
    sizes: list[int] = []
    trajectory = LinearTrajectory(updates, *start(make_scheduler(name, CONFIG)))

    async def denoise(run: LinearRun) -> RunResult:
        sizes.append(len(run.tensors))
        return RunResult(torch.zeros(len(run.returned), *SHAPE[1:]), ())

    for index in range(0, 50, 10):
        await trajectory.run(index, [MIX] * 10, denoise)
    noise = sum(update.num_draws for update in updates[:10])
    assert max(sizes) <= noise + 10


@pytest.mark.parametrize(
    "change",
    [{"clip_sample": True}, {"thresholding": True}, {"variance_type": "learned_range"}],
)
def test_samplers_that_are_not_linear_are_left_to_diffusers(change: dict[str, Any]) -> None:
    assert linear_updates("ddpm", {**CONFIG, **change}, 10, 1.0) is None


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
async def test_more_steps_than_a_sampler_can_do_are_refused_by_field(name: str) -> None:
    asked: Any = SimpleNamespace(scheduler=name, num_inference_steps=1000, sampled_share=1.0)
    with pytest.raises(InvalidArgument) as error:
        await schedule_of(asked, {**CONFIG, "timestep_spacing": "leading"})
    assert "num_inference_steps" in error.value.message


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("euler_a", {"prediction_type": "sample"}),
        ("ddpm", {"variance_type": "fixed_large_log"}),  # NaN, also by diffusers
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),  # eps where abar is 0
    ],
)
async def test_a_sampler_that_fails_with_the_familys_configuration_is_refused(
    name: str, change: dict[str, Any]
) -> None:
    asked: Any = SimpleNamespace(scheduler=name, num_inference_steps=7, sampled_share=1.0)
    with pytest.raises(InvalidArgument) as error:
        await schedule_of(asked, {**CONFIG, **change})
    assert (error.value.field, error.value.value) == ("scheduler", name)


async def test_a_schedule_is_kept_once_for_all_strengths_that_leave_the_same_steps() -> None:
    asked: Any = SimpleNamespace(scheduler="ddim", num_inference_steps=10)
    made = []
    for asked.sampled_share in (0.5, 0.55, 0.6):
        made.append(await schedule_of(asked, CONFIG))
    one, same, other = made
    assert one is same
    assert len(other.timesteps) == 6


async def test_kept_schedules_have_a_bounded_number_of_steps() -> None:
    for count in range(440, 480):
        asked: Any = SimpleNamespace(scheduler="ddim", num_inference_steps=count, sampled_share=1.0)
        newest = await schedule_of(asked, CONFIG)
        assert sum(len(one.timesteps) for one in schedules._kept.values()) <= schedules.MAX_KEPT_STEPS
    assert await schedule_of(asked, CONFIG) is newest
