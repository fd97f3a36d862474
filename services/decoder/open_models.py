"""What the decoder serves by the Open Inference Protocol: the autoencoder, both ways."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import torch
from PIL import Image

from sfumato.common.batching import RowQueue
from sfumato.common.errors import InvalidArgument
from sfumato.common.inference_tensors import Model, Tensor
from sfumato.decoder.config import DecoderSettings
from sfumato.decoder.engine_torch import to_pixels
from sfumato.decoder.models import DecoderModels

MAX_IMAGES = 16  # of a request; max_pixels is for all of them


def open_models(
    models: DecoderModels,
    image_of: Callable[[torch.Tensor], Awaitable[Image.Image]],
    rows: RowQueue,
    settings: DecoderSettings,
) -> list[Model]:
    """The table.

    Args:
        models: the service's own family's.
        image_of: latents [1, C, h, w] to the image that may leave.
        rows: of the model's thread.
        settings: for limits.
    """
    vae = models.vae

    async def vae_decode(wanted: Sequence[str], latents: torch.Tensor) -> dict[str, torch.Tensor]:
        images = await asyncio.gather(*(image_of(row) for row in latents.split(1)))
        return {"images": torch.stack([torch.from_numpy(np.array(image)) for image in images])}

    async def vae_encode(wanted: Sequence[str], images: torch.Tensor) -> dict[str, torch.Tensor]:
        if any(side % factor for side in images.shape[1:3]):
            raise InvalidArgument("images.shape", f"of sides that are multiples of {factor}", images.shape)
        height, width = images.shape[1:3]
        pixels = [to_pixels(Image.fromarray(image.numpy()), width, height) for image in images]
        mean, std = await rows.rows(models.encode, torch.cat(pixels))
        return {"mean": mean, "std": std}

    channels, factor, pixels = vae.latent_channels, vae.vae_scale_factor, settings.max_pixels
    latents = (-1, channels, -1, -1)
    return [
        Model(
            name="vae_decode",
            inputs=[Tensor("latents", "FP32", latents, channels * pixels // factor**2)],
            outputs=[Tensor("images", "UINT8", (-1, -1, -1, 3))],
            infer=vae_decode,
            max_batch_size=MAX_IMAGES,
        ),
        Model(
            name="vae_encode",
            inputs=[Tensor("images", "UINT8", (-1, -1, -1, 3), 3 * pixels)],
            outputs=[Tensor("mean", "FP32", latents), Tensor("std", "FP32", latents)],
            infer=vae_encode,
            max_batch_size=MAX_IMAGES,
        ),
    ]
