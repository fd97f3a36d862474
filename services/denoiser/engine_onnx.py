"""The UNet as a graph, in ONNX Runtime or on Triton: forward passes only.

What needs gradients or the attention stays on torch.
"""

from pathlib import Path
from typing import Any

import torch

from sfumato.common.engines import GraphSession, choose_session
from sfumato.common.onnx_graph import Graph
from sfumato.denoiser.conditioning import needed
from sfumato.denoiser.engine_torch import TorchUNet, Unet, unet_forward

MAX_ROWS = 8  # of a small UNet on one thread, 0.6 of their time one by one; 32 rows: 0.5


class OnnxUNet(Unet):
    """As TorchUNet; may be called from several threads at once."""

    def __init__(self, unet: TorchUNet, session: GraphSession, max_rows: int) -> None:
        """unet: the model in torch; session: of its `unet_graph`; max_rows: as Forward has it."""
        self.config = unet.config
        self.forward = unet_forward(unet.config, unet.device, lambda *given: (session.run(*given),), max_rows)


def open_unet(unet: TorchUNet, engine: str, cache: Path, triton_url: str = "") -> Unet:
    """The UNet for forward passes: OnnxUNet, or `unet` itself where choose_session says torch."""
    # One thread a forward: the step queue runs as many forwards at a time as there are cores.
    session = choose_session(
        unet_graph(unet), engine, cache, unet.device, num_threads=1, triton_url=triton_url
    )
    # A Triton server puts rows together by itself.
    together = 1 if engine == "triton" else MAX_ROWS
    return OnnxUNet(unet, session, together) if session else unet


def unet_graph(unet: TorchUNet) -> Graph:
    """noise_pred [rows, C, h, w] of latents, timestep [rows], and the conditioning's tensors."""
    more = needed(unet.config)

    def inputs(rows: int, height: int, width: int, tokens: int, timestep: float) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(tokens, unet.config.cross_attention_dim), *more.values()]
        return (
            torch.randn(rows, unet.config.in_channels, height, width, generator=generator),
            torch.full((rows,), timestep),
            *(torch.randn(rows, *shape, generator=generator) for shape in shapes),
        )

    image = {0: "rows", 2: "height", 3: "width"}
    return Graph(
        name="unet",
        module=_NoisePred(unet),
        weights=unet.weights,
        # Odd sides: the UNet then sizes its upsampling by its skip connections, which is right for all sides.
        inputs=dict(zip(("latents", "timestep", *unet.takes), inputs(2, 9, 11, 7, 500.5), strict=True)),
        dynamic_axes={
            "latents": image,
            "timestep": {0: "rows"},
            "prompt_embeds": {0: "rows", 1: "tokens"},
            **{name: {0: "rows"} for name in more},
            "output": image,
        },
        checks=[inputs(1, 8, 8, 77, 999.0), inputs(1, 7, 10, 3, 0.25), inputs(2, 12, 16, 8, 41.7)],
    )


class _NoisePred(torch.nn.Module):
    """The UNet with its inputs in order, giving the tensor alone."""

    def __init__(self, unet: TorchUNet) -> None:
        super().__init__()
        self.model = unet.model
        self._predict = unet.predict

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, *given: torch.Tensor) -> Any:
        return self._predict(latents, timestep, *given)
