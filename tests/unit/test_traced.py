"""A recorded graph gives the model's bits, sees its weights, and is forgotten when others come."""

from pathlib import Path

import torch

from sfumato.common.traced import KEPT_SHAPES, Traced
from sfumato.decoder.engine_torch import TorchAutoencoder
from sfumato.denoiser.engine_torch import TorchUNet

CPU = torch.device("cpu")


def with_gradient(function: object, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and the gradient of its sum of squares with respect to the first tensor."""
    x = tensors[0].clone().requires_grad_()
    output = function(x, *tensors[1:])  # type: ignore[operator]
    return output.detach(), torch.autograd.grad(output.square().sum(), x)[0]


def test_output_and_gradient_have_the_models_bits_at_every_shape(tiny_family: Path) -> None:
    unet = TorchUNet(tiny_family, CPU)
    traced = Traced(lambda *inputs: unet.model(*inputs, return_dict=False)[0])
    channels, width = unet.config.in_channels, unet.config.cross_attention_dim
    # Shapes and timesteps come back, so that graphs recorded with other values are used too.
    for height, side, timestep in ((8, 8, 900.0), (8, 12, 3.0), (8, 8, 12.5), (8, 12, 700.0)):
        latents, embeds = torch.randn(1, channels, height, side), torch.randn(1, 7, width)
        timesteps = torch.tensor([timestep])
        expected = with_gradient(
            lambda x, t, e: unet.model(x, t, e, return_dict=False)[0], latents, timesteps, embeds
        )
        for given, wanted in zip(with_gradient(traced, latents, timesteps, embeds), expected, strict=True):
            assert torch.equal(given, wanted)


def test_a_graph_has_the_models_weights_not_copies(tiny_family: Path) -> None:
    vae = TorchAutoencoder(tiny_family, CPU)
    traced, latents = Traced(vae.pixels), torch.randn(1, vae.latent_channels, 4, 4)
    before = traced(latents)
    vae.model.decoder.conv_out.bias.add_(1)
    torch.testing.assert_close(traced(latents), before + 1)


def test_a_shape_too_many_forgets_the_one_unused_for_longest() -> None:
    recorded = []

    def twice(x: torch.Tensor) -> torch.Tensor:
        recorded.append(len(x))
        return x * 2

    traced = Traced(twice)
    for size in (*range(1, KEPT_SHAPES + 1), 1, 99, 1, 2):
        assert torch.equal(traced(torch.ones(size)), torch.full((size,), 2.0))
    assert recorded == [*range(1, KEPT_SHAPES + 1), 99, 2]
