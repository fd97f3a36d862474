"""Each service's vector-Jacobian product against finite differences in float64."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.common.errors import ResourceExhausted
from sfumato.common.gradients import GraphCount
from sfumato.decoder.engine_torch import TorchAutoencoder
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.denoiser.gradients import GradientQueue
from sfumato.encoder.cutouts import make_cutouts
from sfumato.encoder.engine_torch import JointEncoder
from sfumato.encoder.guide import (
    ImageObjective,
    Targets,
    guide_image,
    guide_latents,
    range_loss,
    total_variation,
)
from sfumato.encoder.noised import NoisedClip

CPU = torch.device("cpu")
TOLERANCE = 1e-6  # relative, of central differences in float64


def directional_error(
    objective: Callable[[torch.Tensor], float], x: torch.Tensor, gradient: torch.Tensor
) -> float:
    """Relative difference between gradient . d and the central difference along d, for random d."""
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    # Along the gradient too, so that the derivative is not small by chance.
    direction = direction / direction.norm() + gradient / gradient.norm()
    h = 1e-4
    expected = (objective(x + h * direction) - objective(x - h * direction)) / (2 * h)
    return abs(float((gradient * direction).sum()) - expected) / abs(expected)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def joint(tiny_family: Path) -> JointEncoder:
    """The tiny CLIP in float64."""
    return JointEncoder(f"local-dir:{tiny_family / 'clip'}", CPU, torch.float64)


def targets_of(joint: JointEncoder) -> Targets:
    """Two texts, one of them unwanted."""
    embeddings = joint.embed_texts(["a cat", "a red dog"]).clone()
    return Targets(embeddings, torch.tensor([1.0, -0.5], dtype=torch.float64))


def test_the_unets_gradient_is_that_of_finite_differences(tiny_family: Path) -> None:
    unet = TorchUNet(tiny_family, CPU, torch.float64)
    latents, embeds, vector = random(1, 4, 8, 8), random(1, 6, 32, seed=1), random(1, 4, 8, 8, seed=2)
    kept = unet.linearise(latents, 321.0, Conditioning(embeds))

    def objective(x: torch.Tensor) -> float:
        return float((unet.noise_pred(x, 321.0, Conditioning(embeds)) * vector).sum())

    assert torch.allclose(kept.output, unet.noise_pred(latents, 321.0, Conditioning(embeds)))
    assert directional_error(objective, latents, kept.vjp(vector)) < TOLERANCE


async def test_the_gradient_of_several_rows_is_their_sum(tiny_family: Path) -> None:
    unet = TorchUNet(tiny_family, CPU, torch.float64)
    latents, embeds, vector = random(1, 4, 8, 8), random(2, 6, 32, seed=1), random(2, 4, 8, 8, seed=2)
    queue = GradientQueue(1)
    gradient = await queue.vjp(await queue.linearise(unet, latents, 50.0, Conditioning(embeds)), vector)
    queue.close()

    def objective(x: torch.Tensor) -> float:
        return float((unet.noise_pred(x, 50.0, Conditioning(embeds)) * vector).sum())

    assert directional_error(objective, latents, gradient) < TOLERANCE


def test_the_decoders_gradient_is_that_of_finite_differences(tiny_family: Path) -> None:
    vae = TorchAutoencoder(tiny_family, CPU, torch.float64)
    latents, vector = random(1, 4, 8, 8) * 0.2, random(1, 3, 64, 64, seed=1)
    kept = vae.linearise(latents)

    def objective(x: torch.Tensor) -> float:
        return float((vae.linearise(x).output * vector).sum())

    assert directional_error(objective, latents, kept.vjp(vector)) < TOLERANCE


@pytest.mark.parametrize("num_cutouts", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_the_images_gradient_is_that_of_finite_differences(
    joint: JointEncoder, num_cutouts: int, size: tuple[int, int]
) -> None:
    # Beyond [-1, 1] in places, so that the range loss counts.
    image = random(1, 3, *size) * 0.6
    options = ImageObjective(num_cutouts, 1.0, 5, similarity_scale=10.0, tv_scale=0.3, range_scale=0.7)
    targets = targets_of(joint)

    def objective(x: torch.Tensor) -> float:
        terms = guide_image(joint, x, targets, options)
        return 10.0 * terms.similarity - 0.3 * terms.total_variation - 0.7 * terms.range

    gradient = guide_image(joint, image, targets, options).gradient
    assert directional_error(objective, image, gradient) < TOLERANCE


def test_the_noised_latents_gradient_is_that_of_finite_differences(
    tiny_family: Path, joint: JointEncoder
) -> None:
    noised = NoisedClip(tiny_family, CPU, joint, torch.float64)
    latents, targets = random(1, 4, 8, 8), targets_of(joint)

    def objective(x: torch.Tensor) -> float:
        return 3.0 * guide_latents(noised, x, 400.0, targets, 3.0).similarity

    gradient = guide_latents(noised, latents, 400.0, targets, 3.0).gradient
    assert directional_error(objective, latents, gradient) < TOLERANCE


def test_one_cutout_is_what_clip_sees_of_the_image(tiny_family: Path) -> None:
    """The similarity of a file, embedded as open_clip does it, is that of its pixels."""
    joint = JointEncoder(f"local-dir:{tiny_family / 'clip'}", CPU)
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(64, 64, 3)
    image = pixels.permute(2, 0, 1)[None] / 127.5 - 1
    targets = Targets(joint.embed_texts(["a cat"]).clone(), torch.ones(1))
    options = ImageObjective(1, 1.0, 0, 1.0, 0.0, 0.0)
    plain = joint.embed_images([picture])
    assert guide_image(joint, image, targets, options).similarity == pytest.approx(
        float(plain[0] @ targets.embeddings[0]), abs=0.01
    )


def test_cutouts_depend_on_the_seed_alone_and_lie_in_the_image() -> None:
    image = torch.full((1, 3, 96, 80), 0.25, dtype=torch.float64)
    for power in (0.3, 1.0, 4.0):
        cutouts = make_cutouts(image, 32, 16, power, seed=9)
        assert cutouts.shape == (16, 3, 32, 32)
        assert torch.allclose(cutouts, torch.full_like(cutouts, 0.25))
    picture = random(1, 3, 96, 80)
    again = [make_cutouts(picture, 32, 4, 1.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_cutouts_differ_even_where_the_image_is_no_larger_than_clips_input() -> None:
    cutouts = make_cutouts(random(1, 3, 32, 32), 32, 2, 1.0, seed=0)
    assert not torch.equal(cutouts[0], cutouts[1])


def test_losses_are_their_closed_forms() -> None:
    ramp = torch.arange(4.0).repeat(4, 1)[None, None]  # rises by 1 to the right, except at the edge
    assert float(total_variation(ramp)) == pytest.approx(0.75)
    assert float(range_loss(torch.tensor([[[[0.5, 1.5, -3.0, 1.0]]]]))) == pytest.approx((0.25 + 4) / 4)


def test_more_graphs_than_the_limit_are_refused() -> None:
    count = GraphCount(2)
    count.add(2)
    with pytest.raises(ResourceExhausted, match="at most 2"):
        count.add()
    count.remove()
    count.add()
