"""DDIM inversion: the noise from which an image's latents come back.

Song et al. 2021, section 4.3, run at guidance 1 and eta 0 (Hertz et al. 2022, section 4.3). A step of DDIM is

    z_s = sqrt(abar_s) x0(z_t, t) + sqrt(1 - abar_s) eps(z_t, t),    s < t,

which is solved here for z_t. The usual inversion takes eps at z_s instead of z_t and so does not quite come
back; here it is the first guess of a fixed-point iteration (Pan et al. 2023, "Effective real image editing
with accelerated iterative diffusion inversion", equation 6), whose last guess is exact to rounding.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import torch

from sfumato.common.errors import SfumatoError
from sfumato.gateway.sampling import predicted_x0

# (index of the call, latents [1, C, h, w], timestep) -> noise_pred [1, C, h, w]
Denoise = Callable[[int, torch.Tensor, float], Awaitable[torch.Tensor]]

NUM_GUESSES = 20  # at most; two to four are the rule from 50 steps on
TOLERANCE = 1e-4  # of the latents' root mean square: further guesses change nothing that can be seen


async def invert(scheduler: Any, latents: torch.Tensor, denoise: Denoise) -> AsyncGenerator[torch.Tensor]:
    """Yields the latents after each step of the inversion; the last ones are where sampling starts.

    Args:
        scheduler: a DDIMScheduler with its timesteps set.
        latents: scaled latents of an image, float32 [1, C, h, w].
        denoise: the UNet under the image's prompt alone.

    Raises:
        SfumatoError: the latents are no longer finite.
    """
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    calls = 0
    for timestep in scheduler.timesteps.flip(0).tolist():
        earlier, guess = latents, latents
        for _ in range(NUM_GUESSES):
            noise_pred = await denoise(calls, guess, float(timestep))
            calls += 1
            better = step_back(scheduler, earlier, guess, noise_pred, timestep, timestep - stride)
            change = float((better - guess).square().mean().sqrt())
            guess = better
            if change < TOLERANCE * float(better.square().mean().sqrt()):
                break
        latents = guess
        if not bool(torch.isfinite(latents).all()):
            raise SfumatoError(f"The inversion is not finite at timestep {timestep}; take more steps")
        yield latents


def step_back(
    scheduler: Any,
    earlier: torch.Tensor,
    guess: torch.Tensor,
    model_output: torch.Tensor,
    timestep: int,
    earlier_timestep: int,
) -> torch.Tensor:
    """z_t from z_s, with eps as the model sees it at a guess of z_t."""
    alphas = scheduler.alphas_cumprod
    alpha = float(alphas[timestep])
    last = scheduler.final_alpha_cumprod
    earlier_alpha = float(alphas[earlier_timestep] if earlier_timestep >= 0 else last)
    x0 = predicted_x0(scheduler, guess, model_output, float(timestep))
    eps = (guess - alpha**0.5 * x0) / (1 - alpha) ** 0.5
    x0_of_earlier = (earlier - (1 - earlier_alpha) ** 0.5 * eps) / earlier_alpha**0.5
    return alpha**0.5 * x0_of_earlier + (1 - alpha) ** 0.5 * eps
