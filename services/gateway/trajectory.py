"""One image's sampling run: text to image, image to image, inpainting.

Follows diffusers' StableDiffusionPipeline, ...Img2ImgPipeline and ...InpaintPipeline draw by draw from
one generator per image, so that the same seed gives the same image.
"""

import copy
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import torch

from sfumato.common.linear_steps import LinearRun, RunResult, latents_digest
from sfumato.gateway.guidance import Guided, Point, finite, score_form
from sfumato.gateway.linear_trajectory import LinearTrajectory, Mix
from sfumato.gateway.parameters import FamilyInfo, Parameters
from sfumato.gateway.sampling import ancestral_variance, is_ancestral, predicted_x0, step_options
from sfumato.gateway.schedules import Schedule

# The prediction and the gradient at one evaluation of the trajectory.
Guide = Callable[[Point], Awaitable[Guided]]


@dataclass(frozen=True)
class Source:
    """The image to start from: mean and deviation of its unscaled latents, and the mask of latents.

    Shapes: mean and std [1, C, h, w]; mask [1, 1, h, w] of 0 (keep) and 1 (repaint), or None.
    """

    mean: torch.Tensor
    std: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True)
class StepRuns:
    """Runs of steps at the denoiser, where nothing has to be known in between.

    Attributes:
        length: of a run, from the index of its first step and the number of all; 1: a step by `guide`.
        mix: what a step takes of the rows' predictions, from the same.
        denoise: does a run, from the index of its first step.
    """

    length: Callable[[int, int], int]
    mix: Callable[[int, int], Mix]
    denoise: Callable[[int, LinearRun], Awaitable[RunResult]]


@dataclass(frozen=True)
class Step:
    """What one step left, or a run of them."""

    index: int  # of the last one
    num_steps: int
    latents: torch.Tensor
    predicted_x0: Callable[[], torch.Tensor]
    latents_digests: tuple[bytes, ...]  # after each


async def sample(
    parameters: Parameters,
    seed: int,
    family: FamilyInfo,
    source: Source | None,
    guide: Guide,
    schedule: Schedule,
    runs: StepRuns | None = None,
) -> AsyncGenerator[Step]:
    """Runs the trajectory of one image, yielding after each step or run of steps; the last one's latents are
    the image, which is the same whichever steps are in runs.
    """
    scheduler, timesteps = schedule.scheduler, schedule.timesteps
    generator = torch.Generator().manual_seed(seed)
    factor = family.vae_scale_factor
    shape = (1, family.latent_channels, parameters.height // factor, parameters.width // factor)
    start = Start(scheduler, timesteps, generator, shape, source, family.scaling_factor, parameters.strength)
    mask = source.mask if source is not None else None
    trajectory: LinearTrajectory | SchedulerTrajectory
    # With a mask the scheduler itself steps: it is asked for the noise level that it has come to.
    if schedule.updates is None or mask is not None:
        scheduler = copy.deepcopy(scheduler)
        trajectory = SchedulerTrajectory(scheduler, timesteps, start.latents, generator)
    else:
        trajectory = LinearTrajectory(schedule.updates, start.latents, generator)
    prediction_type, num_steps = scheduler.config.prediction_type, len(timesteps)
    index = 0
    while index < num_steps:
        length = runs.length(index, num_steps) if runs else 1
        if runs and isinstance(trajectory, LinearTrajectory) and length > 1:
            mixes = [runs.mix(i, num_steps) for i in range(index, index + length)]
            end = await trajectory.run(index, mixes, functools.partial(runs.denoise, index))
            index += length - 1
            model_input, noise_pred = end.model_input, finite(end.prediction, index)
            digests = end.latents_digests
        else:
            t, level = float(timesteps[index]), schedule.noise_levels[index]
            model_input = trajectory.model_input(index)
            guided = await guide(Point(index, num_steps, model_input, t, level, prediction_type))
            noise_pred, gradient = guided.noise_pred, guided.gradient
            if gradient is not None and not is_ancestral(scheduler):
                noise_pred = score_form(noise_pred, gradient, level, prediction_type)
            trajectory.step(index, noise_pred)
            if gradient is not None and is_ancestral(scheduler):
                trajectory.latents = trajectory.latents + ancestral_variance(scheduler, t) * gradient
            if mask is not None:
                kept = start.kept(scheduler, timesteps[index + 1 : index + 2])
                trajectory.latents = (1 - mask) * kept + mask * trajectory.latents
            digests = (latents_digest(trajectory.latents.numpy()),)
        x0 = functools.partial(predicted_x0, scheduler, model_input, noise_pred, float(timesteps[index]))
        yield Step(index, num_steps, trajectory.latents, x0, digests)
        index += 1


class SchedulerTrajectory:
    """LinearTrajectory's steps by diffusers' scheduler itself."""

    def __init__(
        self, scheduler: Any, timesteps: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
    ) -> None:
        self.latents = latents
        self._scheduler, self._timesteps = scheduler, timesteps
        self._options = step_options(scheduler, generator)

    def model_input(self, index: int) -> torch.Tensor:
        """As LinearTrajectory's."""
        result: torch.Tensor = self._scheduler.scale_model_input(self.latents, self._timesteps[index])
        return result

    def step(self, index: int, prediction: torch.Tensor) -> None:
        """As LinearTrajectory's."""
        self.latents = self._scheduler.step(
            prediction, self._timesteps[index], self.latents, **self._options, return_dict=False
        )[0]


class Start:
    """The first latents, and what inpainting needs later: the image's latents and the noise."""

    def __init__(
        self,
        scheduler: Any,
        timesteps: torch.Tensor,
        generator: torch.Generator,
        shape: tuple[int, ...],
        source: Source | None,
        scaling_factor: float,
        strength: float,
    ) -> None:
        def draw() -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        if source is None:
            self.latents = draw() * scheduler.init_noise_sigma
            return
        self.image_latents = (source.mean + source.std * draw()) * scaling_factor
        self.noise = draw()
        if source.mask is not None:
            draw()  # diffusers draws the masked image's latents here, which this UNet does not take
        if source.mask is not None and strength == 1:
            self.latents = self.noise * scheduler.init_noise_sigma
        else:
            self.latents = scheduler.add_noise(self.image_latents, self.noise, timesteps[:1])

    def kept(self, scheduler: Any, later: torch.Tensor) -> torch.Tensor:
        """The image's latents, noised as before the step at timestep `later`, [1]; none: as they are."""
        if not len(later):
            return self.image_latents
        result: torch.Tensor = scheduler.add_noise(self.image_latents, self.noise, later)
        return result
