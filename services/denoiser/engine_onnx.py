"""The UNet in ONNX Runtime: forward passes only. What needs gradients or the attention stays on torch."""

from pathlib import Path
from typing import Any

import structlog
import torch

from sfumato.common.onnx_graph import Graph, GraphError, Session, open_graph
from sfumato.denoiser.engine_torch import TorchUNet, Unet

log = structlog.get_logger()


class _NoisePred(torch.nn.Module):
    """The UNet with its inputs in order, giving the tensor alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, prompt_embeds: torch.Tensor) -> Any:
        return self.model(latents, timestep, prompt_embeds, return_dict=False)[0]


class OnnxUNet:
    """As TorchUNet; may be called from several threads at once."""

    def __init__(self, unet: TorchUNet, cache: Path, num_threads: int) -> None:
        """Exports `unet`, or finds it in the cache; num_threads: of one forward on a CPU.

        Raises:
            GraphError: it cannot be exported, or the graph differs from `unet`.
        """
        self.config = unet.config
        self._session: Session = open_graph(_graph(unet), cache, unet.device, num_threads)

    def noise_pred(self, latents: torch.Tensor, timestep: float, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """As TorchUNet.noise_pred."""
        rows = len(prompt_embeds)
        return self._session.run(
            latents.expand(rows, -1, -1, -1),
            torch.full((rows,), timestep, dtype=torch.float32),
            prompt_embeds,
        )


def _graph(unet: TorchUNet) -> Graph:
    def inputs(rows: int, height: int, width: int, tokens: int, timestep: float) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return (
            torch.randn(rows, unet.config.in_channels, height, width, generator=generator),
            torch.full((rows,), timestep),
            torch.randn(rows, tokens, unet.config.cross_attention_dim, generator=generator),
        )

    names = ("latents", "timestep", "prompt_embeds")
    example = [tensor.to(unet.device) for tensor in inputs(2, 9, 11, 7, 500.5)]
    image = {0: "rows", 2: "height", 3: "width"}
    return Graph(
        name="unet",
        module=_NoisePred(unet.model),
        weights=unet.weights,
        inputs=dict(zip(names, example, strict=True)),
        dynamic_axes={
            "latents": image,
            "timestep": {0: "rows"},
            "prompt_embeds": {0: "rows", 1: "tokens"},
            "output": image,
        },
        checks=[inputs(1, 8, 8, 77, 999.0), inputs(1, 7, 10, 3, 0.25), inputs(2, 12, 16, 8, 41.7)],
    )


def open_unet(unet: TorchUNet, engine: str, cache: Path) -> Unet:
    """The UNet for forward passes.

    Args:
        unet: the model in torch.
        engine: torch, onnxruntime, or auto: onnxruntime on a CPU, torch elsewhere.
        cache: folder for exported graphs.

    Returns:
        OnnxUNet, or `unet` where that was chosen or, with a line in the log, the graph is no good.
    """
    if engine == "torch" or (engine == "auto" and unet.device.type != "cpu"):
        return unet
    try:
        return OnnxUNet(unet, cache, num_threads=1)
    except GraphError as error:
        log.error("the UNet runs on torch, not on onnxruntime", error=str(error))
        return unet
