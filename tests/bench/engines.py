"""One row of the UNet in ONNX Runtime against torch, each on one thread, as the denoiser runs it on a CPU.

    python -m tests.bench.engines --family deploy/models/emoji
    python -m tests.bench.engines --sd15        # also a UNet of Stable Diffusion 1.5's size, random weights

Prints a JSON line for each UNet; the two engines are measured in turn, so that a busy machine slows both.
--sd15 writes 3.4 GB of weights and a graph of the same size to a temporary folder; it takes 8 GB of memory or
more, and minutes.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.engine_onnx import open_unet
from sfumato.denoiser.engine_torch import TorchUNet, Unet

# unet/config.json of stable-diffusion-v1-5; the rest is the class's default: 859,520,964 parameters.
SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD15_TOKENS, SD15_LATENTS = 77, 32  # for 256x256 pixels


def seconds(unet: Unet, latents: torch.Tensor, conditioning: Conditioning) -> float:
    """Of one row."""
    start = time.perf_counter()
    unet.noise_pred(latents, 500.0, conditioning)
    return time.perf_counter() - start


def measured(family: Path, cache: Path, side: int, num_tokens: int, repeats: int) -> dict[str, Any]:
    """Medians of the two engines.

    Args:
        family: folder with unet/.
        cache: for the graph.
        side: of the latents; 0: as the family has it.
        num_tokens: of the conditioning.
        repeats: of each engine, after two to warm up.
    """
    torch_unet = TorchUNet(family, torch.device("cpu"))
    onnx_unet = open_unet(torch_unet, "onnxruntime", cache)
    assert onnx_unet is not torch_unet, "the log above says why there is no graph"
    config = torch_unet.config
    side = side or config.sample_size
    generator = torch.Generator().manual_seed(0)
    given = (
        torch.randn(1, config.in_channels, side, side, generator=generator),
        Conditioning(torch.randn(1, num_tokens, config.cross_attention_dim, generator=generator)),
    )
    torch.set_num_threads(1)
    pairs = [(seconds(onnx_unet, *given), seconds(torch_unet, *given)) for _ in range(2 + repeats)][2:]
    onnx_seconds, torch_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    parameters = sum(tensor.numel() for tensor in torch_unet.model.parameters())
    return {
        "unet": family.name, "parameters": parameters, "latents": side, "repeats": repeats,
        "torch_seconds": round(torch_seconds, 5), "onnxruntime_seconds": round(onnx_seconds, 5),
        "onnxruntime_step_ratio": round(onnx_seconds / torch_seconds, 3),
    }  # fmt: skip


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--repeats", type=int, default=60, help="of the family's UNet; the large one: 5")
    parser.add_argument("--sd15", action="store_true", help="also a UNet of Stable Diffusion 1.5's size")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    print(json.dumps(measured(arguments.family, DenoiserSettings().onnx_cache, 0, 32, arguments.repeats)))
    if arguments.sd15:
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            family = Path(folder) / "sd15-size"
            torch.manual_seed(0)
            UNet2DConditionModel(**SD15).save_pretrained(family / "unet")
            print(json.dumps(measured(family, Path(folder) / "onnx", SD15_LATENTS, SD15_TOKENS, 5)))


if __name__ == "__main__":
    main()
