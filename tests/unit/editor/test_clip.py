"""CLIP as a loss agrees with open_clip's own forward, and its views are seeded and differentiable."""

import pytest
import torch
from PIL import Image

from sfumato.editor.clip import Clip
from sfumato.editor.cutouts import cropped_cutouts, make_cutouts, pooled_cutouts
from sfumato.editor.method import ImagePrompt, Prompt
from sfumato.editor.pixels import fitted, to_image, to_tensor, working_size
from tests.tiny_models import TinyModels


@pytest.fixture
def clip(models: TinyModels) -> Clip:
    return Clip(models.clip, models.tokenizer, models.device)


def random_image(side: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_embeddings_are_open_clips(clip: Clip, models: TinyModels) -> None:
    image = random_image(clip.side)
    mean, std = torch.tensor([0.48, 0.46, 0.41]).view(3, 1, 1), torch.tensor([0.27, 0.26, 0.28]).view(3, 1, 1)
    expected = models.clip.encode_image((image - mean) / std, normalize=True)
    assert torch.allclose(clip.embed_images(image), expected, atol=1e-6)
    tokens = models.tokenizer(["a cat"])
    assert torch.allclose(
        clip.embed_texts(["a cat"]), models.clip.encode_text(tokens, normalize=True), atol=1e-6
    )


def test_any_size_of_image_is_resized_and_cropped(clip: Clip) -> None:
    assert clip.resize(torch.zeros(2, 3, 70, 50)).shape == (2, 3, clip.side, clip.side)
    flat = torch.full((1, 3, 70, 50), 0.3)
    assert torch.allclose(clip.resize(flat), torch.full((1, 3, clip.side, clip.side), 0.3), atol=1e-6)


def test_targets_hold_texts_then_images_then_noise(clip: Clip) -> None:
    image = Image.new("RGB", (40, 40), "red")
    noise = torch.ones(1, 16) / 4
    targets = clip.targets([Prompt("a", -2.0, 0.5)], [ImagePrompt(3.0)], [image], noise)
    assert targets.weights.tolist() == [-2, 3, 1]
    assert targets.stops.tolist() == [0.5, float("-inf"), float("-inf")]
    assert torch.allclose(targets.embeds[0], clip.embed_texts(["a"])[0])
    assert torch.allclose(targets.embeds[1], clip.embed_images(to_tensor(image))[0])
    assert torch.allclose(targets.embeds.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("kind", ["pooled", "cropped"])
def test_cutouts_depend_on_the_generator_alone(kind: str) -> None:
    image = random_image(48)
    first, again, other = (
        make_cutouts(image, kind, 5, 32, 1.0, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert first.shape == (5, 3, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("kind", ["pooled", "cropped"])
def test_gradient_through_cutouts_agrees_with_finite_differences(kind: str) -> None:
    image = random_image(12).requires_grad_()
    weights = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(9))

    def score(pixels: torch.Tensor) -> torch.Tensor:
        views = make_cutouts(pixels, kind, 4, 8, 1.0, torch.Generator().manual_seed(3))
        return (views.double() * weights).sum()

    gradient = torch.autograd.grad(score(image), image)[0]
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(5))
    step = 1e-3
    with torch.no_grad():
        difference = (score(image + step * direction) - score(image - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=0.02, abs=0.02)


def test_cropped_cutouts_show_parts_and_pooled_ones_the_whole() -> None:
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    crops = cropped_cutouts(ramp, 20, 16, 1.0, torch.Generator().manual_seed(0))
    spans = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    assert spans.min() < 0.5 < 0.7 < spans.max()
    whole = pooled_cutouts(ramp, 2, 16)
    assert torch.allclose(whole[:, 0, 0, -1] - whole[:, 0, 0, 0], torch.tensor(60 / 63).expand(2), atol=1e-5)


def test_pixels_survive_the_way_there_and_back() -> None:
    image = to_image(random_image(9))
    assert to_image(to_tensor(image)).tobytes() == image.tobytes()


def test_the_working_size_follows_the_request_then_the_image_then_the_model() -> None:
    wide, small = Image.new("RGB", (2000, 1000)), Image.new("RGB", (50, 41))
    assert working_size(None, 0, own=64) == (64, 64)
    assert working_size(None, 96, own=64, multiple=8) == (96, 96)
    assert working_size(wide, 0, own=64, multiple=8) == (512, 256)
    assert working_size(wide, 64, own=64, multiple=8) == (64, 32)
    assert working_size(small, 0, own=64) == (50, 41)
    assert working_size(small, 0, own=64, multiple=8) == (48, 40)
    assert fitted(wide, (64, 32)).size == (64, 32)
