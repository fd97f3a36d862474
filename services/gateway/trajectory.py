"""One image's sampling run: text to image, image to image, inpainting.

Follows diffusers' StableDiffusionPipeline, ...Img2ImgPipeline and ...InpaintPipeline draw by draw from
one generator per image, so that the same seed gives the same image.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import torch

from sfumato.gateway.guidance import Guided, Point, score_form
from sfumato.gateway.parameters import FamilyInfo, Parameters
from sfumato.gateway.sampling import (
    ancestral_variance,
    is_ancestral,
    make_scheduler,
    noise_levels,
    predicted_x0,
    set_timesteps,
    step_options,
)

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
class Step:
    """What one step left."""

    index: int
    num_steps: int
    latents: torch.Tensor
    predicted_x0: Callable[[], torch.Tensor]


def prepare(parameters: Parameters, scheduler_config: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """A scheduler and the timesteps that it will run."""
    scheduler = make_scheduler(parameters.scheduler, scheduler_config)
    share = parameters.sampled_share
    return scheduler, set_timesteps(scheduler, parameters.num_inference_steps, share)


async def sample(
    parameters: Parameters, seed: int, family: FamilyInfo, source: Source | None, guide: Guide
) -> AsyncGenerator[Step]:
    """Runs the trajectory of one image, yielding after each step; the last one's latents are the image."""
    scheduler, timesteps = prepare(parameters, family.scheduler_config)
    generator = torch.Generator().manual_seed(seed)
    options = step_options(scheduler, generator)
    factor = family.vae_scale_factor
    shape = (1, family.latent_channels, parameters.height // factor, parameters.width // factor)
    start = Start(scheduler, timesteps, generator, shape, source, family.scaling_factor, parameters.strength)
    latents = start.latents
    levels = noise_levels(scheduler, timesteps)
    prediction_type = scheduler.config.prediction_type
    for index, timestep in enumerate(timesteps):
        model_input = scheduler.scale_model_input(latents, timestep)
        t, level = float(timestep), levels[index]
        guided = await guide(Point(index, len(timesteps), model_input, t, level, prediction_type))
        noise_pred, gradient = guided.noise_pred, guided.gradient
        if gradient is not None and not is_ancestral(scheduler):
            noise_pred = score_form(noise_pred, gradient, level, prediction_type)
        latents = scheduler.step(noise_pred, timestep, latents, **options, return_dict=False)[0]
        if gradient is not None and is_ancestral(scheduler):
            latents = latents + ancestral_variance(scheduler, t) * gradient
        if source is not None and source.mask is not None:
            later = timesteps[index + 1 : index + 2]
            kept = (
                scheduler.add_noise(start.image_latents, start.noise, later)
                if len(later)
                else start.image_latents
            )
            latents = (1 - source.mask) * kept + source.mask * latents

        def x0(
            x: torch.Tensor = model_input, e: torch.Tensor = noise_pred, t: float = float(timestep)
        ) -> torch.Tensor:
            return predicted_x0(scheduler, x, e, t)

        yield Step(index, len(timesteps), latents, x0)


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
