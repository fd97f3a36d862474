"""Samplers: diffusers' schedulers by name, their timesteps, and the predicted x0.

A sampler is the family's scheduler_config.json under another diffusers class, as in
`DDIMScheduler.from_config(pipeline.scheduler.config)`.
"""

import copy
import functools
import inspect
import json
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from sfumato.common.errors import InvalidArgument
from sfumato.gateway.guidance import x0_of

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_sde": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


@dataclass(frozen=True)
class UsualSampling:
    """What a request gets that does not say."""

    scheduler: str = "dpmpp_2m"
    num_inference_steps: int = 30
    guidance_scale: float = 5.0


def usual_sampling(scheduler_config: dict[str, Any]) -> UsualSampling:
    """The defaults of a family, read from its scheduler_config.json.

    Distilled families name the sampler that they were made for: latent consistency models LCM's, turbo models
    (Sauer et al. 2023) Euler's with trailing timesteps. They need few steps, turbo models no guidance.
    """
    kind = scheduler_config.get("_class_name")
    trailing = scheduler_config.get("timestep_spacing") == "trailing"
    if kind == "LCMScheduler":
        return UsualSampling("lcm", 4, 8.0)
    if kind == "EulerDiscreteScheduler" and trailing:
        return UsualSampling("euler", 4, 1.0)
    if kind == "EulerAncestralDiscreteScheduler" and trailing:
        return UsualSampling("euler_a", 4, 1.0)
    return UsualSampling()


def make_scheduler(name: str, scheduler_config: dict[str, Any]) -> Any:
    """A fresh scheduler; it holds one trajectory's state."""
    return copy.deepcopy(_scheduler(name, json.dumps(scheduler_config)))


@functools.lru_cache(maxsize=256)
def _scheduler(name: str, scheduler_config: str) -> Any:
    """Made once: from_config takes milliseconds, and says again what it does not like of a config."""
    class_name, overrides = SCHEDULERS[name]
    return getattr(diffusers, class_name).from_config(json.loads(scheduler_config), **overrides)


def num_timesteps(
    name: str, scheduler_config: dict[str, Any], num_inference_steps: int, strength: float
) -> int:
    """How many timesteps set_timesteps leaves. Raises as it."""
    return _num_timesteps(name, json.dumps(scheduler_config), num_inference_steps, strength)


@functools.lru_cache(maxsize=4096)
def _num_timesteps(name: str, scheduler_config: str, num_inference_steps: int, strength: float) -> int:
    scheduler = copy.deepcopy(_scheduler(name, scheduler_config))
    return len(set_timesteps(scheduler, num_inference_steps, strength))


def set_timesteps(scheduler: Any, num_inference_steps: int, strength: float) -> torch.Tensor:
    """The timesteps to run, [steps]; with strength < 1 only the last ones (SDEdit, as in diffusers).

    Raises:
        InvalidArgument: the sampler cannot take so many steps, or strength leaves none.
    """
    try:
        scheduler.set_timesteps(num_inference_steps)
    except (ValueError, IndexError, AssertionError) as error:
        raise not_taken(scheduler, num_inference_steps, error) from error
    last = scheduler.config.num_train_timesteps - 1
    if float(scheduler.timesteps.max()) > last:  # steps_offset pushes the first one over the end
        raise InvalidArgument(
            "num_inference_steps", f"fewer, for timesteps up to {last}", num_inference_steps
        )
    kept = min(int(num_inference_steps * strength), num_inference_steps)
    if kept < 1:
        limit = f"at least 1/num_inference_steps, which is {1 / num_inference_steps:.4g}"
        raise InvalidArgument("strength", limit, strength)
    first = (num_inference_steps - kept) * scheduler.order
    if strength < 1 and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps: torch.Tensor = scheduler.timesteps[first:]
    return timesteps


def not_taken(scheduler: Any, num_inference_steps: int, error: Exception) -> InvalidArgument:
    """What a request hears whose number of steps the scheduler fails at."""
    limit = f"a number of steps that {type(scheduler).__name__} takes"
    return InvalidArgument("num_inference_steps", limit, num_inference_steps, str(error)[:200])


def noise_levels(scheduler: Any, timesteps: torch.Tensor) -> list[float]:
    """abar of the latents at each of the timesteps to run, the last of the scheduler's.

    Samplers that step in sigma = sqrt((1 - abar) / abar) say themselves which noise level the latents have;
    their timesteps may be rounded.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        return [float(scheduler.alphas_cumprod[int(timestep)]) for timestep in timesteps]
    first = len(scheduler.timesteps) - len(timesteps)
    return [1 / (1 + float(sigma) ** 2) for sigma in sigmas[first : first + len(timesteps)]]


def is_ancestral(scheduler: Any) -> bool:
    """Whether a step samples from N(mu, Sigma), so that guidance shifts mu (DDPM)."""
    return isinstance(scheduler, diffusers.DDPMScheduler)


def ancestral_variance(scheduler: Any, timestep: float) -> float:
    """DDPM's Sigma: beta_t, or (1 - abar_prev) / (1 - abar_t) beta_t (Ho et al. 2020, section 3.2)."""
    t = int(timestep)
    previous = int(scheduler.previous_timestep(t))
    if previous < 0:
        return 0.0
    alpha_cumprod, before = float(scheduler.alphas_cumprod[t]), float(scheduler.alphas_cumprod[previous])
    beta = 1 - alpha_cumprod / before
    if scheduler.config.variance_type.startswith("fixed_large"):
        return beta
    return (1 - before) / (1 - alpha_cumprod) * beta


def step_options(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """Keyword arguments of `scheduler.step` that this scheduler has: eta 0 and the image's generator."""
    names = inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"eta": 0.0, "generator": generator}
    return {name: value for name, value in options.items() if name in names}


def predicted_x0(
    scheduler: Any, model_input: torch.Tensor, model_output: torch.Tensor, timestep: float
) -> torch.Tensor:
    """The image's latents as this step sees them: DDPM (Ho et al. 2020), equation 15.

    Args:
        scheduler: gives alphas_cumprod and the prediction type.
        model_input: x_t in its variance-preserving form, as the UNet took it.
        model_output: eps or v.
        timestep: t; rounded where the sampler uses fractional ones.
    """
    index = min(max(round(timestep), 0), len(scheduler.alphas_cumprod) - 1)
    alpha_cumprod = float(scheduler.alphas_cumprod[index])
    return x0_of(model_input, model_output, alpha_cumprod, scheduler.config.prediction_type)
