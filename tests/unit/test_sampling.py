"""Samplers and guidance against their closed forms."""

import pytest
import torch

from sfumato.common.errors import InvalidArgument
from sfumato.gateway.guidance import classifier_free
from sfumato.gateway.sampling import SCHEDULERS, make_scheduler, predicted_x0, set_timesteps, usual_sampling

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
          "set_alpha_to_one": False, "steps_offset": 1, "num_train_timesteps": 1000}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_finds_the_image_when_the_noise_is_known(name: str) -> None:
    """With eps exactly that of x0, x = a x0 + s eps, each sampler must end near x0."""
    torch.manual_seed(0)
    x0, noise = torch.randn(1, 4, 8, 8) * 0.5, torch.randn(1, 4, 8, 8)
    scheduler = make_scheduler(name, CONFIG)
    timesteps = set_timesteps(scheduler, 30, 1.0)
    generator = torch.Generator().manual_seed(0)
    latents = noise * scheduler.init_noise_sigma
    for timestep in timesteps:
        model_input = scheduler.scale_model_input(latents, timestep)
        alpha = scheduler.alphas_cumprod[round(float(timestep))]
        eps = (model_input - alpha**0.5 * x0) / (1 - alpha) ** 0.5
        kwargs = {"generator": generator} if name in ("ddpm", "euler_a", "dpmpp_sde", "lcm") else {}
        latents = scheduler.step(eps, timestep, latents, **kwargs).prev_sample
    assert (latents - x0).abs().mean() < 0.12


def test_predicted_x0_inverts_the_forward_process() -> None:
    scheduler = make_scheduler("ddim", CONFIG)
    x0, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    noisy = scheduler.add_noise(x0, noise, torch.tensor([400]))
    assert torch.allclose(predicted_x0(scheduler, noisy, noise, 400.0), x0, atol=1e-5)


def test_classifier_free_guidance_is_the_equation() -> None:
    null, text = torch.randn(1, 4, 2, 2).double(), torch.randn(1, 4, 2, 2).double()
    guided = classifier_free(torch.cat([null, text]), 7.5)
    assert torch.allclose(guided, 7.5 * text - 6.5 * null)
    assert torch.equal(classifier_free(text, 7.5), text)


def test_strength_keeps_the_last_steps() -> None:
    scheduler = make_scheduler("ddim", CONFIG)
    whole = set_timesteps(scheduler, 20, 1.0)
    part = set_timesteps(make_scheduler("ddim", CONFIG), 20, 0.5)
    assert torch.equal(part, whole[10:])


def test_strength_that_leaves_no_step_says_what_would() -> None:
    with pytest.raises(InvalidArgument, match=r"1/num_inference_steps, which is 0\.1"):
        set_timesteps(make_scheduler("ddim", CONFIG), 10, 0.05)


def test_steps_that_would_run_over_the_schedules_end_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="num_inference_steps"):
        set_timesteps(make_scheduler("ddim", CONFIG), 1000, 1.0)


def test_more_steps_than_lcm_takes_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="num_inference_steps"):
        set_timesteps(make_scheduler("lcm", CONFIG), 100, 1.0)


@pytest.mark.parametrize(
    ("config", "usual"),
    [
        ({"_class_name": "PNDMScheduler"}, ("dpmpp_2m", 30, 5.0)),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, ("dpmpp_2m", 30, 5.0)),
        ({"_class_name": "LCMScheduler"}, ("lcm", 4, 8.0)),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, ("euler", 4, 1.0)),
        (
            {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
            ("euler_a", 4, 1.0),
        ),
    ],
)
def test_a_family_made_for_few_steps_has_its_own_defaults(
    config: dict[str, str], usual: tuple[str, int, float]
) -> None:
    found = usual_sampling(config)
    assert (found.scheduler, found.num_inference_steps, found.guidance_scale) == usual
