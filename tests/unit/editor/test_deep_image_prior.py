"""Deep image prior: denoises, fills in, follows a prompt, resumes."""

import pytest
import torch
from PIL import Image, ImageDraw

from sfumato.common.errors import InvalidArgument
from sfumato.editor.deep_image_prior import METHOD, Options, start
from sfumato.editor.method import Inputs, Prompt
from sfumato.editor.pixels import to_image, to_tensor
from tests.tiny_models import TinyModels
from tests.unit.editor.resuming import assert_resumes_bit_for_bit, finish

SMALL = {"channels": 32, "num_scales": 3}


def picture(side: int = 32) -> Image.Image:
    image = Image.new("RGB", (side, side), (60, 120, 210))
    draw = ImageDraw.Draw(image)
    draw.ellipse((side // 8, side // 8, side * 7 // 8, side * 7 // 8), (250, 210, 60))
    draw.rectangle((side // 3, side // 2, side * 2 // 3, side * 5 // 8), (120, 40, 30))
    return image


def psnr(a: Image.Image, b: Image.Image) -> float:
    return float(-10 * torch.log10((to_tensor(a) - to_tensor(b)).square().mean()))


def test_denoising_gains_4_db(models: TinyModels) -> None:
    clean = picture()
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    noisy = to_image(to_tensor(clean) + 0.12 * noise)
    options = Options(num_iterations=350, **SMALL)
    result = finish(METHOD, start(options, Inputs(noisy), models)).result()["image"]
    assert psnr(result, clean) >= psnr(noisy, clean) + 4


def test_inpainting_fills_the_hole_and_keeps_the_rest(models: TinyModels) -> None:
    clean = picture()
    mask = Image.new("L", clean.size, 0)
    ImageDraw.Draw(mask).rectangle((8, 8, 13, 13), 255)
    damaged = Image.composite(Image.new("RGB", clean.size, "black"), clean, mask)
    result = finish(
        METHOD, start(Options(num_iterations=250, **SMALL), Inputs(damaged, mask), models)
    ).result()["image"]
    assert psnr(result, clean) >= psnr(damaged, clean) + 8
    outside = Image.composite(damaged, result, mask)
    assert outside.tobytes() == damaged.tobytes()


def test_with_a_prompt_alone_clips_loss_falls(models: TinyModels) -> None:
    options = Options(prompts=(Prompt("a cat"),), num_iterations=30, num_cutouts=4, **SMALL)
    state = start(options, Inputs(), models)
    losses = [progress.losses for progress in METHOD.run(state)]
    assert sum(loss["clip"] for loss in losses[-5:]) < sum(loss["clip"] for loss in losses[:5])
    assert state.result()["image"].size == (32, 32)


def test_it_resumes_bit_for_bit(models: TinyModels) -> None:
    options = Options(prompts=(Prompt("a cat"),), num_iterations=4, num_cutouts=2, seed=5, **SMALL)
    assert_resumes_bit_for_bit(METHOD, options, Inputs(picture()), models)


def test_seeds_give_different_pictures(models: TinyModels) -> None:
    first, second = (
        finish(METHOD, start(Options(num_iterations=1, seed=seed, **SMALL), Inputs(picture()), models))
        for seed in (0, 1)
    )
    assert first.result()["image"].tobytes() != second.result()["image"].tobytes()


def test_it_refuses_nothing_to_do_and_tiny_images(models: TinyModels) -> None:
    with pytest.raises(InvalidArgument, match="prompts must be given"):
        start(Options(), Inputs(), models)
    with pytest.raises(InvalidArgument, match="at least 8 pixels"):
        start(Options(), Inputs(Image.new("RGB", (1, 1))), models)


def test_a_loss_that_is_not_finite_names_the_cure(models: TinyModels) -> None:
    state = start(Options(num_iterations=3, **SMALL), Inputs(picture()), models)
    with torch.no_grad():
        state.network.head.bias.fill_(float("nan"))
    with pytest.raises(InvalidArgument, match="learning_rate"):
        finish(METHOD, state)
