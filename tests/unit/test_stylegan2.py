"""StyleGAN2's generator against a forward from the paper's equations, one image at a time, in float64."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sfumato.common.errors import NotFound
from sfumato.common.stylegan2 import StyleGAN2, load_stylegan2, save_stylegan2

Keys = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def generator() -> StyleGAN2:
    """Every weight random, so that none can be forgotten."""
    torch.manual_seed(0)
    model = StyleGAN2(16, [12, 8, 6], d=10, num_mapping_layers=3).double()
    for name, parameter in model.named_parameters():
        if name.endswith(("noise.weight", "bias")):
            parameter.data.normal_()
            if name.startswith("style."):
                parameter.data.mul_(10)
    return model.requires_grad_(False)


def leaky(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def paper_mapping(keys: Keys, z: torch.Tensor) -> torch.Tensor:
    w = z / (z.square().mean() + 1e-8).sqrt()
    for layer in (1, 2, 3):
        matrix = keys[f"style.{layer}.weight"] * 0.01 / math.sqrt(len(w))
        w = leaky(matrix @ w + keys[f"style.{layer}.bias"] * 0.01)
    return w


def filtered(x: torch.Tensor, pad: tuple[int, int]) -> torch.Tensor:
    """Padded and filtered with [1, 3, 3, 1] x [1, 3, 3, 1], gain 4."""
    row = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8
    kernel = (4 * torch.outer(row, row)).expand(x.shape[0], 1, 4, 4)
    return F.conv2d(F.pad(x[None], (*pad, *pad)), kernel, groups=x.shape[0])[0]


def with_zeros(x: torch.Tensor) -> torch.Tensor:
    """A zero behind every pixel, both ways."""
    c, h, w = x.shape
    out = x.new_zeros(c, 2 * h, 2 * w)
    out[:, ::2, ::2] = x
    return out


def paper_conv(
    keys: Keys, name: str, x: torch.Tensor, style: torch.Tensor, up: bool, demodulate: bool = True
) -> torch.Tensor:
    """Equations 1 to 3: modulate and demodulate the weights of this one image."""
    weight = keys[f"{name}.conv.weight"][0]
    weight = weight / math.sqrt(weight[0].numel()) * style[None, :, None, None]
    if demodulate:
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if not up:
        return F.conv2d(x[None], weight, padding=weight.shape[-1] // 2)[0]
    # A transposed convolution is the convolution of the image with zeros in it by the mirrored kernel.
    spaced = with_zeros(x)[:, :-1, :-1]
    return filtered(F.conv2d(F.pad(spaced[None], (2, 2, 2, 2)), weight.flip(2, 3))[0], (1, 1))


def paper_style(keys: Keys, name: str, w: torch.Tensor) -> torch.Tensor:
    return (
        keys[f"{name}.conv.modulation.weight"] @ w / math.sqrt(len(w)) + keys[f"{name}.conv.modulation.bias"]
    )


def paper_synthesis(keys: Keys, style_of: Callable[[str, int], torch.Tensor]) -> torch.Tensor:
    """style_of: of a convolution's name and its layer in W+."""

    def styled(name: str, x: torch.Tensor, layer: int, noise: int, up: bool) -> torch.Tensor:
        y = paper_conv(keys, name, x, style_of(name, layer), up)
        y = y + keys[f"{name}.noise.weight"] * keys[f"noises.noise_{noise}"][0]
        return leaky(y + keys[f"{name}.activate.bias"][:, None, None])

    def to_rgb(name: str, x: torch.Tensor, layer: int) -> torch.Tensor:
        return (
            paper_conv(keys, name, x, style_of(name, layer), False, demodulate=False)
            + keys[f"{name}.bias"][0]
        )

    x = styled("conv1", keys["input.input"][0], 0, 0, False)
    image = to_rgb("to_rgb1", x, 1)
    for scale in (0, 1):
        x = styled(f"convs.{2 * scale}", x, 2 * scale + 1, 2 * scale + 1, True)
        x = styled(f"convs.{2 * scale + 1}", x, 2 * scale + 2, 2 * scale + 2, False)
        image = filtered(with_zeros(image), (2, 1)) + to_rgb(f"to_rgbs.{scale}", x, 2 * scale + 3)
    return image


def test_mapping_is_the_papers(generator: StyleGAN2) -> None:
    z = torch.randn(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([paper_mapping(generator.state_dict(), row) for row in z])
    assert torch.allclose(generator.mapping(z), expected, atol=1e-12)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)


def test_images_are_the_papers(generator: StyleGAN2) -> None:
    keys = generator.state_dict()
    w_plus = torch.randn(2, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = [
        paper_synthesis(keys, lambda name, layer, w=w: paper_style(keys, name, w[layer])) for w in w_plus
    ]
    images = generator(w_plus)
    assert images.shape == (2, 3, 16, 16)
    assert torch.allclose(images, torch.stack(expected), atol=1e-10)


def test_every_layer_of_w_plus_and_every_style_matters(generator: StyleGAN2) -> None:
    w_plus = torch.randn(1, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert generator.num_layers == 6
    plain = generator(w_plus)
    for layer in range(6):
        changed = w_plus.clone()
        changed[:, layer] += 1
        assert not torch.allclose(generator(changed), plain, atol=1e-3)
    styles = generator.styles(w_plus)
    assert [style.shape[1] for style in styles] == [12, 12, 12, 8, 8, 8, 6, 6]
    assert generator.is_rgb() == [False, True, False, False, True, False, False, True]
    for index in range(len(styles)):
        changed_styles = [style + (k == index) for k, style in enumerate(styles)]
        assert not torch.allclose(generator.synthesis(changed_styles), plain, atol=1e-3)


def test_noise_is_the_models_own_or_drawn(generator: StyleGAN2) -> None:
    styles = generator.styles(torch.randn(1, 6, 10, dtype=torch.float64))
    assert torch.equal(generator.synthesis(styles), generator.synthesis(styles))
    one, same, other = (generator.synthesis(styles, torch.Generator().manual_seed(k)) for k in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_folder_brings_it_back(generator: StyleGAN2, tmp_path: Path) -> None:
    save_stylegan2(generator, tmp_path)
    loaded = load_stylegan2(tmp_path)
    w_plus = torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(loaded(w_plus).double(), generator(w_plus.double()), atol=0.05)
    (tmp_path / "config.json").unlink()
    with pytest.raises(NotFound, match=r"config\.json"):
        load_stylegan2(tmp_path)


def test_keys_are_rosinalitys(generator: StyleGAN2) -> None:
    names = set(generator.state_dict())
    expected = {
        "style.1.weight", "input.input", "conv1.conv.weight", "conv1.conv.modulation.bias",
        "conv1.noise.weight", "conv1.activate.bias", "to_rgb1.conv.weight", "to_rgb1.bias",
        "convs.0.conv.blur.kernel", "convs.1.conv.modulation.weight", "to_rgbs.0.upsample.kernel",
        "to_rgbs.0.conv.weight", "noises.noise_4",
    }  # fmt: skip
    assert expected <= names
    assert generator.state_dict()["conv1.conv.weight"].shape == (1, 12, 12, 3, 3)
