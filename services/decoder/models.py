"""What the decoder makes of a family's folder: the autoencoder."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from sfumato_protos.v1 import tensor_pb2

from sfumato.common.model_memory import copies_of, model_bytes
from sfumato.common.tensors import to_message
from sfumato.common.weights import weights_digest
from sfumato.decoder.config import DecoderSettings
from sfumato.decoder.engine_onnx import Decode, open_decode
from sfumato.decoder.engine_torch import TorchAutoencoder


@dataclass(frozen=True)
class DecoderModels:
    """One family's: vae for gradients and encoding, decode by the engine of the settings.

    preview_projection: None where images carry a watermark: previews are decoded, and marked, too.
    """

    vae: TorchAutoencoder
    decode: Decode
    weights_digest: str
    preview_projection: tensor_pb2.Tensor | None


def load_models(family: Path, settings: DecoderSettings, device: torch.device) -> DecoderModels:
    """Loads and warms them."""
    threads = settings.num_threads or os.cpu_count() or 1
    vae = TorchAutoencoder(family, device)
    decode = open_decode(vae, settings.engine, settings.onnx_cache, threads, settings.triton_url)
    image = decode(torch.zeros(1, vae.latent_channels, 8, 8))
    vae.encode(image, image.width, image.height)
    projection = None if settings.watermark else to_message(vae.preview_projection())
    return DecoderModels(vae, decode, weights_digest(family, "vae"), projection)


def num_bytes(family: Path, settings: DecoderSettings, device: torch.device) -> int:
    """Memory that they take, by the headers of the weights."""
    return model_bytes(family, {"vae": copies_of(settings.engine, device)})
