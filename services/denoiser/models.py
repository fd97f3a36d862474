"""What the denoiser makes of a family's folder: the UNet, as its uses need it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.common.adapters import adapters_of
from sfumato.common.family import read_json
from sfumato.common.model_memory import copies_of, model_bytes
from sfumato.common.weights import engine_version, weights_digest
from sfumato.denoiser.attention import AttentionUNet
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.engine_onnx import open_unet
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.denoiser.unets import Adapters, Unets


@dataclass(frozen=True)
class DenoiserModels:
    """One family's.

    Attributes:
        unets: without an adapter; adapters: with.
        scheduler_config: the family's file, as JSON.
        engine: what runs `unets.unet`; "": nothing promises the same bits.
    """

    unets: Unets
    adapters: Adapters
    scheduler_config: str
    weights_digest: str
    engine: str

    @property
    def config(self) -> Any:
        """The UNet's."""
        return self.unets.unet.config


def load_models(family: Path, settings: DenoiserSettings, device: torch.device) -> DenoiserModels:
    """Loads them."""
    scheduler_config = json.dumps(read_json(family, "scheduler", "scheduler_config.json"))
    dtype = getattr(torch, settings.dtype)
    torch_unet = TorchUNet(family, device, dtype)
    unet = open_unet(torch_unet, settings.unet_engine, settings.onnx_cache, settings.triton_url)
    for one in (torch_unet, unet):
        one.forward.batch_invariant = settings.batch_invariant
    named = "torch" if unet is torch_unet else "onnxruntime"
    # What Triton runs on may change, and a row may share its forward with others.
    same_bits = settings.batch_invariant and settings.engine != "triton"
    return DenoiserModels(
        Unets(unet, torch_unet, AttentionUNet(torch_unet.model, device)),
        Adapters(torch_unet, adapters_of(family), settings.max_adapters),
        scheduler_config,
        weights_digest(family, "unet", "adapters"),
        engine_version(named, device, dtype) if same_bits else "",
    )


def num_bytes(family: Path, settings: DenoiserSettings, device: torch.device) -> int:
    """Memory that they take, by the headers of the weights."""
    copies = {"unet": copies_of(settings.unet_engine, device)}
    return model_bytes(family, copies, getattr(torch, settings.dtype))
