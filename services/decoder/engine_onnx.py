"""The autoencoder's decoding as a graph, in ONNX Runtime or on Triton.

Encoding, and what needs gradients, stay on torch.
"""

from pathlib import Path

import torch

from sfumato.common.engines import choose_session
from sfumato.common.forwards import Forward, torch_rows
from sfumato.common.onnx_graph import Graph
from sfumato.decoder.engine_torch import TorchAutoencoder, to_images


def open_decode(
    vae: TorchAutoencoder, engine: str, cache: Path, num_threads: int, triton_url: str = ""
) -> Forward:
    """TorchAutoencoder.decode by its graph, or that itself where choose_session says torch.

    Args:
        vae: the model in torch.
        engine, cache, triton_url: as choose_session has them.
        num_threads: CPU threads of one run.
    """
    session = choose_session(decoder_graph(vae), engine, cache, vae.device, num_threads, triton_url)
    if session is None:
        return Forward("decode", vae.decode, torch_rows(vae.device))
    # Rows together are no faster on all cores (docs/performance.md); Triton puts them together by itself.
    return Forward("decode", lambda latents: (to_images(session.run(latents)),), max_rows=1)


def decoder_graph(vae: TorchAutoencoder) -> Graph:
    """Pixels [1, 3, height, width], not clamped, of scaled latents [1, C, h, w]."""

    def latents(height: int, width: int) -> tuple[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(1, vae.latent_channels, height, width, generator=generator),)

    return Graph(
        name="decoder",
        module=_Pixels(vae),
        weights=vae.weights,
        inputs={"latents": latents(9, 11)[0]},
        dynamic_axes={"latents": {2: "h", 3: "w"}, "output": {2: "height", 3: "width"}},
        checks=[latents(8, 8), latents(7, 10)],
    )


class _Pixels(torch.nn.Module):
    """TorchAutoencoder.pixels as a module."""

    def __init__(self, vae: TorchAutoencoder) -> None:
        super().__init__()
        self.model = vae.model
        self._pixels = vae.pixels

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self._pixels(latents)
