"""Guidance: equations, every sampler, and options."""

from typing import Any

import pytest
import torch

from sfumato.common.errors import FailedPrecondition, SfumatoError
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.guidance import Guided, Point, clamped, classifier_free, score_form, x0_of
from sfumato.gateway.parameters import FamilyInfo, Parameters, resolve
from sfumato.gateway.sampling import (
    SCHEDULERS,
    ancestral_variance,
    make_scheduler,
    noise_levels,
    set_timesteps,
)
from sfumato.gateway.schedules import schedule_of
from sfumato.gateway.trajectory import sample

CONFIG: dict[str, Any] = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1, "num_train_timesteps": 1000, "skip_prk_steps": True,
}  # fmt: skip
SETTINGS = GatewaySettings()


def family(**changes: Any) -> FamilyInfo:
    """One that has every part."""
    values: dict[str, Any] = {
        "name": "families/f", "latent_channels": 16, "sample_size": 32, "vae_scale_factor": 8,
        "scaling_factor": 1.0, "max_pixels": 256 * 256, "max_tokens": 40, "scheduler_config": CONFIG,
        "num_cross_attention_layers": 4, "embedding_size": 8, "noised_clip": True,
    }  # fmt: skip
    return FamilyInfo(**{**values, **changes})


def parameters(given: dict[str, Any], info: FamilyInfo | None = None) -> Parameters:
    """As resolved from a request."""
    return resolve({"prompt": "a cat", "seed": 1, **given}, info or family(), SETTINGS)


# Guidance has a closed form where x0 ~ N(0, 1), and y = x0 + noise of variance TAU was seen.
TAU, SEEN = 0.5, 1.2


def gaussian_world(point: Point) -> Guided:
    """The exact eps or v of N(0, 1) data, and the exact gradient of log p(y | x_t)."""
    signal, noise = point.alpha_cumprod**0.5, (1 - point.alpha_cumprod) ** 0.5
    x = point.model_input
    eps, x0 = noise * x, signal * x  # E[eps | x_t] and E[x0 | x_t]; the variance of x0 given x_t is noise^2
    gradient = signal * (SEEN - x0) / (noise**2 + TAU)
    prediction = signal * eps - noise * x0 if point.prediction_type == "v_prediction" else eps
    return Guided(prediction, gradient)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
async def test_every_sampler_guided_by_the_exact_gradient_samples_the_posterior(
    name: str, prediction_type: str
) -> None:
    """p(x0 | y) has mean y / (1 + TAU), whatever the sampler and what the UNet predicts."""
    info = family(scheduler_config={**CONFIG, "prediction_type": prediction_type})
    # Shifting mu is exact for small steps only; LCM takes no more than 50.
    num_steps = {"ddpm": 500, "lcm": 40}.get(name, 100)
    p = parameters({"scheduler": name, "num_inference_steps": num_steps}, info)

    async def guide(point: Point) -> Guided:
        return gaussian_world(point)

    schedule = await schedule_of(p, info.scheduler_config)
    steps = [step async for step in sample(p, 1, info, None, guide, schedule)]
    assert float(steps[-1].latents.mean()) == pytest.approx(SEEN / (1 + TAU), abs=0.05)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
async def test_the_noise_level_is_that_of_the_latents(name: str, strength: float) -> None:
    """An image noised to a step's level and scaled for the UNet keeps the share that noise_levels says."""
    scheduler = make_scheduler(name, CONFIG)
    timesteps = set_timesteps(scheduler, 20, strength)
    levels = noise_levels(scheduler, timesteps)
    assert len(levels) == len(timesteps)
    ones, zeros = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    noised = scheduler.add_noise(ones, zeros, timesteps[:1])
    signal = float(scheduler.scale_model_input(noised, timesteps[0]))
    assert signal == pytest.approx(levels[0] ** 0.5, rel=0.02)


def test_the_score_form_changes_eps_by_the_same_for_v() -> None:
    torch.manual_seed(0)
    x, eps, gradient, alpha_cumprod = *torch.randn(3, 1, 2, 4, 4).double(), 0.3
    signal, noise = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    v = signal * eps - noise * (x - noise * eps) / signal
    expected = x0_of(x, eps - noise * gradient, alpha_cumprod, "epsilon")
    guided_v = score_form(v, gradient, alpha_cumprod, "v_prediction")
    assert torch.allclose(x0_of(x, guided_v, alpha_cumprod, "v_prediction"), expected)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ddpms_variance_is_that_of_diffusers(variance_type: str) -> None:
    scheduler = make_scheduler("ddpm", {**CONFIG, "variance_type": variance_type})
    scheduler.set_timesteps(25)
    for timestep in scheduler.timesteps[:-1]:
        expected = float(scheduler._get_variance(int(timestep)))
        assert ancestral_variance(scheduler, float(timestep)) == pytest.approx(expected, rel=1e-5)
    assert ancestral_variance(scheduler, float(scheduler.timesteps[-1])) == 0


@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_rescaling_is_diffusers(phi: float) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    rows = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    expected = rescale_noise_cfg(classifier_free(rows, 7.5), rows[1:], guidance_rescale=phi)
    assert torch.allclose(classifier_free(rows, 7.5, phi), expected)


def test_the_clamp_bounds_the_root_mean_square_and_keeps_the_direction() -> None:
    gradient = torch.tensor([3.0, -4.0])
    assert torch.allclose(clamped(gradient, 0.5), gradient * 0.5 / 12.5**0.5)
    assert torch.equal(clamped(gradient, 10.0), gradient)
    assert torch.equal(clamped(gradient, 0.0), gradient)


def test_kinds_without_cfg_show_the_unet_the_empty_text() -> None:
    for kind in ("none", "clip", "noised_clip"):
        assert parameters({"guidance": {"kind": kind}}).conditioning_texts == [""]
    assert parameters({"guidance": {"kind": "cfg_clip"}}).conditioning_texts == ["", "a cat"]
    assert parameters({}).guidance.kind == "cfg"


def test_the_prompt_is_what_clip_steers_by_unless_others_are_given() -> None:
    clip = parameters({"guidance": {"kind": "clip"}}).guidance.clip
    assert clip is not None
    assert (clip.prompts, clip.prompt_weights) == (("a cat",), (1.0,))
    given = {"prompts": ["a dog", "a hat"], "prompt_weights": [1.0, -0.5], "image_prompts": [b"x"]}
    clip = parameters({"guidance": {"kind": "clip", "clip": given}}).guidance.clip
    assert clip is not None
    assert (clip.prompt_weights, clip.image_prompt_weights) == ((1.0, -0.5), (1.0,))


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("guidance.kind", {"guidance": {"kind": "magic"}}),
        ("guidance.rescale", {"guidance": {"rescale": 1.5}}),
        ("guidance.rescale", {"guidance": {"kind": "clip", "rescale": 0.5}}),
        ("guidance.interval_end", {"guidance": {"interval_start": 0.5, "interval_end": 0.2}}),
        ("guidance.clip", {"guidance": {"kind": "cfg", "clip": {"scale": 3}}}),
        ("guidance.clip", {"guidance": {"kind": "none", "clip": {}}}),
        ("guidance_scale", {"guidance": {"kind": "clip"}, "guidance_scale": 5.0}),
        ("negative_prompt", {"guidance": {"kind": "none"}, "negative_prompt": "red"}),
    ],
)  # fmt: skip
def test_an_option_that_does_not_go_with_the_kind_is_refused(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(SfumatoError) as error:
        parameters(given)
    assert (error.value.code, error.value.field) == ("INVALID_ARGUMENT", field)
    assert error.value.limit


@pytest.mark.parametrize(
    ("field", "kind", "clip"),
    [
        ("prompt_weights", "clip", {"prompts": ["a", "b"], "prompt_weights": [1.0]}),
        ("prompt_weights", "clip", {"prompt_weights": [1.0, 2.0]}),
        ("prompt_weights[0]", "clip", {"prompt_weights": [float("nan")]}),
        ("image_prompt_weights", "clip", {"image_prompt_weights": [1.0]}),
        ("prompts[1]", "clip", {"prompts": ["a", " "]}),
        ("scale", "clip", {"scale": float("inf")}),
        ("num_cutouts", "clip", {"num_cutouts": 0}),
        ("num_cutouts", "clip", {"num_cutouts": 1000}),
        ("cut_power", "clip", {"cut_power": 0.0}),
        ("tv_scale", "clip", {"tv_scale": -1.0}),
        ("gradient_clamp", "clip", {"gradient_clamp": -1.0}),
        ("path", "clip", {"path": "shortcut"}),
        ("num_cutouts", "noised_clip", {"num_cutouts": 4}),
        ("path", "cfg_noised_clip", {"path": "predicted_x0"}),
    ],
)
def test_a_bad_clip_option_is_refused_by_name(field: str, kind: str, clip: dict[str, Any]) -> None:
    with pytest.raises(SfumatoError) as error:
        parameters({"guidance": {"kind": kind, "clip": clip}})
    assert (error.value.code, error.value.field) == ("INVALID_ARGUMENT", f"guidance.clip.{field}")
    assert error.value.limit


def test_too_many_prompts_are_too_many() -> None:
    with pytest.raises(SfumatoError, match="at most 64"):
        parameters({"guidance": {"kind": "clip", "clip": {"prompts": ["a"] * 65}}})


@pytest.mark.parametrize(
    ("kind", "lacks", "said"),
    [("clip", {"embedding_size": 0}, "clip/"), ("noised_clip", {"noised_clip": False}, "clip_noised/")],
)
def test_a_family_that_lacks_the_part_says_so(kind: str, lacks: dict[str, Any], said: str) -> None:
    with pytest.raises(FailedPrecondition, match=said) as error:
        parameters({"guidance": {"kind": kind}}, family(**lacks))
    assert error.value.field == "guidance.kind"
    assert kind not in family(**lacks).guidance_kinds
    assert kind in family().guidance_kinds
