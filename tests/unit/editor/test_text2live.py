"""Text2LIVE: composition, each loss's gradient and purpose, and resuming."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from sfumato.common.errors import InvalidArgument
from sfumato.editor import text2live
from sfumato.editor.attention import relevancy
from sfumato.editor.clip import Clip
from sfumato.editor.config import EditorSettings
from sfumato.editor.method import Inputs
from sfumato.editor.options import resolve
from sfumato.editor.pixels import to_tensor
from sfumato.editor.text2live import METHOD, Options, start
from sfumato.editor.text2live_losses import composite, sparsity, structure_loss
from sfumato.editor.views import clip_views, training_view
from tests.tiny_models import TinyModels
from tests.unit.editor.resuming import assert_resumes_bit_for_bit, finish

SMALL = {"channels": 16, "num_views": 3, "templates": "emoji"}


def picture() -> Image.Image:
    image = Image.new("RGB", (36, 32), (60, 120, 210))
    ImageDraw.Draw(image).ellipse((10, 8, 26, 24), (250, 210, 60))
    return image


def layer(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_composite_lies_between_the_image_and_the_layer() -> None:
    below = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    clear, opaque = layer(), layer()
    clear[:, 3], opaque[:, 3] = 0, 1
    assert torch.equal(composite(clear, below), below)
    assert torch.equal(composite(opaque, below), opaque[:, :3])


def test_gradients_agree_with_finite_differences(models: TinyModels) -> None:
    below = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: composite(x, below).square().sum(), layer().requires_grad_())
    assert torch.autograd.gradcheck(sparsity, layer()[:, 3:].requires_grad_())
    clip = Clip(models.clip, models.tokenizer, models.device)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    edited = (0.5 * image).requires_grad_()
    gradient = torch.autograd.grad(structure_loss(clip, edited, image), edited)[0]
    direction, step = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)), 1e-3
    with torch.no_grad():
        up, down = (structure_loss(clip, edited + s * step * direction, image) for s in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float((up - down) / (2 * step)), rel=0.03)


def test_structure_loss_is_zero_only_where_nothing_changed(models: TinyModels) -> None:
    clip = Clip(models.clip, models.tokenizer, models.device)
    image = to_tensor(picture())
    assert float(structure_loss(clip, image, image)) < 1e-10
    assert float(structure_loss(clip, image.flip(-1) * 0.3, image)) > 1e-6


def test_views_are_seeded_and_the_first_is_the_whole_image() -> None:
    image = to_tensor(picture())
    one, same = (clip_views(image, 6, 32, torch.Generator().manual_seed(4)) for _ in range(2))
    assert one.shape == (6, 3, 32, 32)
    assert torch.equal(one, same)
    sizes = {tuple(training_view(image, torch.Generator().manual_seed(seed)).shape[2:]) for seed in range(20)}
    assert len(sizes) > 5
    assert all(25 <= height <= 39 and 28 <= width <= 44 for height, width in sizes)


def test_bootstrapping_draws_the_opacity_to_the_region_and_fades(
    models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Always the whole image: to a random CLIP a view's relevancy has little to do with the image's.
    monkeypatch.setattr(text2live, "WHOLE_IMAGE_EVERY", 1)
    options = Options(
        prompt="a fire", region_prompt="a cat", num_iterations=30, num_bootstrap_iterations=25,
        lambda_composition=0, lambda_screen=0, lambda_structure=0, lambda_sparsity=0, learning_rate=0.02,
        **SMALL,
    )  # fmt: skip
    state = start(options, Inputs(picture()), models)
    clip, image = state.clip, state.image
    region = relevancy(clip.model.visual, clip.normalise(clip.stretch(image)), state.region)
    wanted = F.interpolate(region, size=image.shape[-2:], mode="bilinear", align_corners=False)
    before = F.mse_loss(state.edit_layer()[:, 3:], wanted)
    terms = [progress.losses for progress in METHOD.run(state)]
    assert terms[0]["bootstrap"] == pytest.approx(10 * float(before), rel=1e-4)
    assert F.mse_loss(state.edit_layer()[:, 3:], wanted) < 0.5 * before
    assert all(("bootstrap" in term) == (k < 25) for k, term in enumerate(terms))


def test_sparsity_makes_the_layer_clear(models: TinyModels) -> None:
    options = Options(
        prompt="a fire", num_iterations=12, lambda_sparsity=1000.0, lambda_composition=0, lambda_screen=0,
        lambda_structure=0, learning_rate=0.02, **SMALL,
    )  # fmt: skip
    state = start(options, Inputs(picture()), models)
    before = state.edit_layer()[:, 3].mean()
    assert finish(METHOD, state).edit_layer()[:, 3].mean() < 0.7 * before


def test_terms_follow_the_texts_and_weights(models: TinyModels) -> None:
    def terms(**more: object) -> set[str]:
        options = Options(prompt="a fire", num_iterations=1, **SMALL, **more)  # type: ignore[arg-type]
        return set(next(METHOD.run(start(options, Inputs(picture()), models))).losses)

    common = {"composition", "sparsity", "structure", "screen", "total"}
    assert terms() == common
    assert terms(source_prompt="a cat", region_prompt="a cat") == common | {"direction", "bootstrap"}
    assert terms(lambda_screen=0.0, lambda_structure=0.0) == {"composition", "sparsity", "total"}


def test_it_gives_the_composite_and_the_layer(models: TinyModels) -> None:
    state = finish(
        METHOD, start(Options(prompt="a fire", num_iterations=2, **SMALL), Inputs(picture()), models)
    )
    result = state.result()
    assert result["edit_layer"].mode == "RGBA"
    over = Image.alpha_composite(picture().convert("RGBA"), result["edit_layer"]).convert("RGB")
    difference = (to_tensor(over) - to_tensor(result["image"])).abs().max()
    assert float(difference) <= 2 / 255 + 1e-6


def test_it_resumes_bit_for_bit(models: TinyModels) -> None:
    options = Options(
        prompt="a fire", source_prompt="a cat", region_prompt="a cat", num_iterations=4, seed=2, **SMALL
    )
    assert_resumes_bit_for_bit(METHOD, options, Inputs(picture()), models)


def test_the_least_learning_rate_is_one_that_the_optimiser_takes(models: TinyModels, tmp_path: Path) -> None:
    settings = EditorSettings(state_dir=tmp_path)
    with pytest.raises(InvalidArgument, match="learning_rate"):
        resolve(Options, {"prompt": "a fire", "learning_rate": 0.0}, settings)
    options = resolve(
        Options, {"prompt": "a fire", "learning_rate": 1e-5, "num_iterations": 1, **SMALL}, settings
    )
    assert finish(METHOD, start(options, Inputs(picture()), models)).iteration == 1


def test_it_refuses_an_image_of_one_colour(models: TinyModels) -> None:
    with pytest.raises(InvalidArgument, match="image must be of more than one colour"):
        start(Options(prompt="a fire", **SMALL), Inputs(Image.new("RGB", (64, 48), "grey")), models)


def test_it_refuses_an_empty_target_and_no_image(models: TinyModels) -> None:
    with pytest.raises(InvalidArgument, match="prompt"):
        start(Options(prompt=" "), Inputs(picture()), models)
    with pytest.raises(InvalidArgument, match="image must be given"):
        start(Options(prompt="a"), Inputs(), models)
