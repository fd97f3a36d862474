"""VQGAN+CLIP: the codebook step, the clamp, where it starts, what it aims at, and resuming."""

import pytest
import torch
from PIL import Image

from sfumato.common.errors import InvalidArgument
from sfumato.editor.method import ImagePrompt, Inputs, Prompt
from sfumato.editor.vqgan_clip import METHOD, Options, quantise, start, step
from tests.tiny_models import TinyModels
from tests.unit.editor.resuming import assert_resumes_bit_for_bit, finish

CAT = (Prompt("a cat"),)


def picture() -> Image.Image:
    return Image.radial_gradient("L").resize((32, 24)).convert("RGB")


def test_quantising_is_diffusers_and_its_gradient_goes_straight_through(models: TinyModels) -> None:
    z = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    codebook = models.vqgan.quantize.embedding.weight
    quantised = quantise(z, codebook)
    assert torch.allclose(quantised, models.vqgan.quantize(z)[0], atol=1e-6)
    weights = torch.randn(quantised.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.autograd.grad((quantised * weights).sum(), z)[0], weights)


def test_z_stays_within_the_codebook(models: TinyModels) -> None:
    state = start(Options(prompts=CAT, learning_rate=5.0, num_iterations=3, num_cutouts=2), Inputs(), models)
    finish(METHOD, state)
    z = state.z.detach().permute(0, 2, 3, 1).reshape(-1, 4)
    low, high = state.codebook.amin(0), state.codebook.amax(0)
    assert (z >= low).all()
    assert (z <= high).all()
    # Steps of 5 end at the wall.
    assert ((z == low) | (z == high)).float().mean() > 0.5


def test_the_loss_falls(models: TinyModels) -> None:
    options = Options(prompts=CAT, num_iterations=40, num_cutouts=8, seed=3)
    totals = [progress.losses["total"] for progress in METHOD.run(start(options, Inputs(), models))]
    assert sum(totals[-8:]) < sum(totals[:8])


def test_editing_starts_at_the_image_and_init_weight_holds_it_there(models: TinyModels) -> None:
    inputs = Inputs(picture())
    first = start(Options(prompts=CAT), inputs, models)
    assert first.preview().size == (32, 24)
    with torch.no_grad():
        expected = models.vqgan.decode(first.z0).sample
    assert torch.allclose(first.decode().detach(), ((expected + 1) / 2).clamp(0, 1), atol=1e-5)

    def distance(weight: float) -> float:
        options = Options(prompts=CAT, num_iterations=10, num_cutouts=2, init_weight=weight)
        state = finish(METHOD, start(options, inputs, models))
        return float((state.z - state.z0).detach().norm())

    assert distance(100.0) < 0.5 * distance(0.0)


def test_the_init_loss_is_the_equations(models: TinyModels) -> None:
    state = start(Options(prompts=CAT, num_iterations=2, num_cutouts=2, init_weight=3.0), Inputs(), models)
    step(state)
    expected = 3.0 * (state.z - state.z0).detach().square().mean() / 2
    assert step(state)["init"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["codes", "gradient", "noise"])
def test_every_start_is_seeded(models: TinyModels, kind: str) -> None:
    options = [Options(prompts=CAT, start=kind, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (start(option, Inputs(), models).preview().tobytes() for option in options)
    assert one == same != other


def test_images_and_noise_are_prompts_too(models: TinyModels) -> None:
    options = Options(image_prompts=(ImagePrompt(2.0),), noise_prompts=2, num_iterations=1, num_cutouts=2)
    state = start(options, Inputs(image_prompts=(picture(),)), models)
    assert state.targets.weights.tolist() == [2, 1, 1]
    finish(METHOD, state)
    with pytest.raises(InvalidArgument, match="prompts must be given"):
        start(Options(), Inputs(), models)
    with pytest.raises(InvalidArgument, match="at least 8 pixels"):
        start(Options(prompts=CAT), Inputs(Image.new("RGB", (1, 1))), models)


@pytest.mark.parametrize("cutouts", ["pooled", "cropped"])
def test_it_resumes_bit_for_bit(models: TinyModels, cutouts: str) -> None:
    options = Options(prompts=CAT, num_iterations=4, num_cutouts=3, cutouts=cutouts, init_weight=0.1, size=48)
    assert_resumes_bit_for_bit(METHOD, options, Inputs(picture()), models)
