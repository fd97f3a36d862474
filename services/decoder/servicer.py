"""Messages to calls of the autoencoder."""

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import torch
from PIL import Image
from sfumato_protos.v1 import decoder_pb2, decoder_pb2_grpc, tensor_pb2

from sfumato.common.batching import RowQueue
from sfumato.common.calls import Context
from sfumato.common.devices import device_of, setup_device
from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.common.families import Families
from sfumato.common.family_loader import Source
from sfumato.common.gradients import GraphCount, Linearised
from sfumato.common.images import encode_image, open_image
from sfumato.common.inference_tensors import Model
from sfumato.common.model_service import SERVICE as MODEL_SERVICE
from sfumato.common.model_service import add_model_service
from sfumato.common.tensors import check_finite, from_message, to_message
from sfumato.common.work import run
from sfumato.decoder.config import DecoderSettings
from sfumato.decoder.engine_torch import TorchAutoencoder, to_pixels
from sfumato.decoder.models import DecoderModels, load_models, num_bytes, warm
from sfumato.decoder.open_models import open_models
from sfumato.decoder.watermark import Watermark

_FORMATS = {
    decoder_pb2.IMAGE_FORMAT_UNSPECIFIED: "PNG",
    decoder_pb2.IMAGE_FORMAT_PNG: "PNG",
    decoder_pb2.IMAGE_FORMAT_JPEG: "JPEG",
    decoder_pb2.IMAGE_FORMAT_WEBP: "WEBP",
}


class DecoderServicer(decoder_pb2_grpc.DecoderServiceServicer):
    """Serves DecoderService."""

    service_name = "sfumato.v1.DecoderService"
    also_serves = (MODEL_SERVICE,)

    def __init__(self, settings: DecoderSettings) -> None:
        self.settings = settings
        # One model thread: the engine spreads each forward over the cores itself.
        self.executor = ThreadPoolExecutor(1, "vae")
        self.rows = RowQueue(self.executor, 1)
        self.files = ThreadPoolExecutor(os.cpu_count() or 1, "files")  # read and written beside it
        self.graphs = GraphCount(settings.max_kept_graphs)
        self.watermark = Watermark(settings.watermark) if settings.watermark else None
        self.device = device_of(settings.device)
        source = Source(load_models, num_bytes, self.device, self._warm)
        self.families: Families[DecoderModels] = Families(settings, source)

    def register(self, server: grpc.aio.Server) -> None:
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(self, server)
        add_model_service(server, self.families)

    async def load(self) -> None:
        settings = self.settings
        await asyncio.get_running_loop().run_in_executor(
            self.executor, setup_device, settings.device, settings.num_threads
        )
        await self.families.load_default()

    async def _warm(self, models: DecoderModels) -> None:
        await run(self.executor, "warm", warm, models, self.device)

    def open_models(self) -> list[Model]:
        own = self.families.own
        return open_models(own, functools.partial(self._image, own), self.rows, self.settings)

    async def close(self) -> None:
        self.families.close()
        self.rows.close()
        self.executor.shutdown(cancel_futures=True)
        self.files.shutdown(cancel_futures=True)

    async def GetDecoderInfo(
        self, request: decoder_pb2.GetDecoderInfoRequest, context: Context
    ) -> decoder_pb2.GetDecoderInfoResponse:
        with self.families.use(request.family) as models:
            return decoder_pb2.GetDecoderInfoResponse(
                family=request.family or self.families.default,
                latent_channels=models.vae.latent_channels,
                vae_scale_factor=models.vae.vae_scale_factor,
                scaling_factor=models.vae.scaling_factor,
                max_pixels=self.settings.max_pixels,
                weights_digest=models.weights_digest,
                preview_projection=models.preview_projection,
            )

    async def Decode(
        self, request: decoder_pb2.DecodeRequest, context: Context
    ) -> decoder_pb2.DecodeResponse:
        if request.image_format not in _FORMATS:
            raise InvalidArgument("image_format", f"one of {list(_FORMATS.values())}", request.image_format)
        with self.families.use(request.family) as models:
            latents = _latents(request.latents, self.settings.max_pixels, models.vae)
            image = await self._image(models, latents)
        data = await run(self.files, "write_image", encode_image, image, _FORMATS[request.image_format])
        return decoder_pb2.DecodeResponse(
            image=data, width=image.width, height=image.height, weights_digest=models.weights_digest
        )

    async def _image(self, models: DecoderModels, latents: torch.Tensor) -> Image.Image:
        """The image of latents [1, C, h, w], with its mark."""
        if self.watermark is not None:
            factor = models.vae.vae_scale_factor
            self.watermark.check_size(latents.shape[3] * factor, latents.shape[2] * factor)
        (images,) = await self.rows.rows(models.decode, latents)
        image = Image.fromarray(images[0].numpy())
        if self.watermark is None:
            return image
        return await run(self.files, "watermark", self.watermark.marked, image)

    async def DecodeGradient(
        self,
        request_iterator: AsyncIterator[decoder_pb2.DecodeGradientRequest],
        context: Context,
    ) -> AsyncIterator[decoder_pb2.DecodeGradientResponse]:
        kept: Linearised | None = None
        self.graphs.add()
        with contextlib.ExitStack() as held:
            held.callback(self.graphs.remove)
            models: DecoderModels | None = None
            async for request in request_iterator:
                models = models or held.enter_context(self.families.use(request.family))
                kind = request.WhichOneof("message")
                if kind == "latents":
                    latents = _latents(request.latents, self.settings.max_gradient_pixels, models.vae)
                    kept = await run(self.executor, "decode_kept", models.vae.linearise, latents)
                    yield decoder_pb2.DecodeGradientResponse(image=to_message(kept.output))
                elif kind == "image_gradient" and kept is not None:
                    shape = tuple(kept.graph.shape)
                    vector = from_message(request.image_gradient, kind, shape, kept.graph.numel())
                    check_finite(vector, kind)
                    gradient = await run(self.executor, "decode_gradient", kept.vjp, vector)
                    kept = None
                    yield decoder_pb2.DecodeGradientResponse(latents_gradient=to_message(gradient))
                else:
                    wanted = "`latents`, then its `image_gradient`"
                    raise InvalidArgument("message", wanted, kind or "empty")

    async def Encode(
        self, request: decoder_pb2.EncodeRequest, context: Context
    ) -> decoder_pb2.EncodeResponse:
        with self.families.use(request.family) as models:
            factor = models.vae.vae_scale_factor
            for field, side in (("width", request.width), ("height", request.height)):
                if side < 1 or side % factor:
                    raise InvalidArgument(field, f"a positive multiple of {factor}", side)
            if request.width * request.height > self.settings.max_pixels:
                asked = f"{request.width}x{request.height}"
                raise ResourceExhausted("width x height", f"at most {self.settings.max_pixels} pixels", asked)

            def pixels() -> torch.Tensor:
                image = open_image(request.image, "image", self.settings.max_input_pixels)
                return to_pixels(image, request.width, request.height)

            mean, std = await self.rows.rows(models.encode, await run(self.files, "read_image", pixels))
        return decoder_pb2.EncodeResponse(mean=to_message(mean), std=to_message(std))


def _latents(message: tensor_pb2.Tensor, max_pixels: int, vae: TorchAutoencoder) -> torch.Tensor:
    limit = vae.latent_channels * max_pixels // vae.vae_scale_factor**2
    latents = from_message(message, "latents", (1, vae.latent_channels, None, None), limit)
    check_finite(latents, "latents")
    return latents
