"""The projection that makes previews."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato.common.latent_preview import fit_projection, project


@pytest.mark.parametrize(("channels", "factor"), [(4, 8), (3, 2)])
def test_a_decoder_that_is_a_convolution_is_found_exactly(channels: int, factor: int) -> None:
    """On latents of another shape than the fit's, edges included."""
    torch.manual_seed(1)
    conv: nn.Module = nn.Conv2d(channels, 3 * factor**2, 3, padding=1, padding_mode="replicate")

    @torch.no_grad()
    def decoder(latents: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(0.1 * conv(latents), factor)

    projection = fit_projection(decoder, channels, factor)
    latents = torch.randn(1, channels, 5, 9)
    assert projection.shape == (9 * channels + 1, 3 * factor**2)
    torch.testing.assert_close(project(latents, projection), decoder(latents), atol=2e-3, rtol=0)


def test_the_same_decoder_gives_the_same_projection_and_what_it_clips_does_not_spoil_it() -> None:
    def decoder(latents: torch.Tensor) -> torch.Tensor:
        return 100 * latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)

    first, second = (fit_projection(decoder, 4, 2) for _ in range(2))
    assert torch.equal(first, second)
    assert first.abs().max() < 2  # of pixels from -1 to 1, not from -400 to 400
