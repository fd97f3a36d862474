"""What the decoder serves by the Open Inference Protocol: the autoencoder, both ways."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from PIL import Image

from sfumato.common.errors import InvalidArgument
from sfumato.common.inference_tensors import Model, Tensor
from sfumato.common.work import run
from sfumato.decoder.config import DecoderSettings
from sfumato.decoder.engine_torch import TorchAutoencoder

MAX_IMAGES = 16  # of a request; max_pixels is for all of them


def open_models(
    vae: TorchAutoencoder,
    decode: Callable[[torch.Tensor], Image.Image],
    executor: Executor,
    settings: DecoderSettings,
) -> list[Model]:
    """The table.

    Args:
        vae: for encoding.
        decode: latents [1, C, h, w] to the image that may leave.
        executor: the model's thread.
        settings: for limits.
    """

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.array(decode(latents)))

    def encoded(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        picture = Image.fromarray(image.numpy())
        return vae.encode(picture, picture.width, picture.height)

    async def vae_decode(wanted: Sequence[str], latents: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = (run(executor, "decode", decoded, row) for row in latents.split(1))
        return {"images": torch.stack(await asyncio.gather(*rows))}

    async def vae_encode(wanted: Sequence[str], images: torch.Tensor) -> dict[str, torch.Tensor]:
        if any(side % factor for side in images.shape[1:3]):
            raise InvalidArgument("images.shape", f"of sides that are multiples of {factor}", images.shape)
        parts = await asyncio.gather(*(run(executor, "encode_image", encoded, row) for row in images))
        mean, std = (torch.cat(rows) for rows in zip(*parts, strict=True))
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
