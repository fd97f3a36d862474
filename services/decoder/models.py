"""What the decoder makes of a family's folder: the autoencoder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from sfumato_protos.v1 import tensor_pb2

from sfumato.common.forwards import Forward, torch_rows
from sfumato.common.model_memory import copies_of, model_bytes
from sfumato.common.tensors import to_message
from sfumato.common.weights import weights_digest
from sfumato.decoder.config import DecoderSettings
from sfumato.decoder.engine_onnx import open_decode
from sfumato.decoder.engine_torch import TorchAutoencoder


@dataclass(frozen=True)
class DecoderModels:
    """One family's.

    Attributes:
        vae: for gradients.
        decode: latents to images, as TorchAutoencoder.decode, by the engine of the settings.
        encode: pixels to means and standard deviations, as TorchAutoencoder.encode.
        preview_projection: None where images carry a watermark: previews are decoded, and marked, too.
    """

    vae: TorchAutoencoder
    decode: Forward
    encode: Forward
    weights_digest: str
    preview_projection: tensor_pb2.Tensor | None


def load_models(family: Path, settings: DecoderSettings, device: torch.device) -> DecoderModels:
    """Loads them."""
    vae = TorchAutoencoder(family, device)
    decode = open_decode(vae, settings.engine, settings.onnx_cache, settings.cpu_threads, settings.triton_url)
    encode = Forward("encode_image", vae.encode, torch_rows(device))
    projection = None if settings.watermark else to_message(vae.preview_projection())
    return DecoderModels(vae, decode, encode, weights_digest(family, "vae"), projection)


def warm(models: DecoderModels, device: torch.device) -> None:
    """Runs them once; on the model's thread, so that nobody else's forward counts as memory of a row."""
    vae, side = models.vae, 8 if device.type == "cpu" else 64
    models.decode.warm(device, torch.zeros(1, vae.latent_channels, side, side))
    models.encode.warm(device, torch.zeros(1, 3, side * vae.vae_scale_factor, side * vae.vae_scale_factor))


def num_bytes(family: Path, settings: DecoderSettings, device: torch.device) -> int:
    """Memory that they take, by the headers of the weights."""
    return model_bytes(family, {"vae": copies_of(settings.engine, device)})
