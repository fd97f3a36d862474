"""The gradient calls of encoder and decoder: tensors in, tensors out."""

import asyncio
import time
from typing import Any

import grpc
import torch
from sfumato_protos.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc

from sfumato.common import calls
from sfumato.common.images import open_image
from sfumato.common.tensors import from_message, to_message
from sfumato.gateway.clip_gradient import Targets
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.failures import calling, is_lost
from sfumato.gateway.guidance_options import ClipOptions
from sfumato.gateway.replica_stream import RETRY_SECONDS


class DecoderStream:
    """One trajectory's decodes and their gradients; a lost decoder is asked again, the decode included."""

    def __init__(
        self, stub: "decoder_pb2_grpc.DecoderServiceAsyncStub", settings: GatewaySettings, family: str = ""
    ) -> None:
        self._stub = stub
        self._settings, self._family = settings, family
        self._decode = decoder_pb2.DecodeGradientRequest()
        self._call: Any = None

    async def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """As clip_gradient.Decoding."""
        self._decode = decoder_pb2.DecodeGradientRequest(latents=to_message(latents), family=self._family)
        self._latents_shape = tuple(latents.shape)
        response = await self._answer(self._decode)
        limit = self._settings.max_message_bytes
        return from_message(response.image, "image", (1, 3, None, None), limit)

    async def gradient(self, image_gradient: torch.Tensor) -> torch.Tensor:
        """As clip_gradient.Decoding."""
        request = decoder_pb2.DecodeGradientRequest(image_gradient=to_message(image_gradient))
        response = await self._answer(request)
        shape, limit = self._latents_shape, self._settings.max_message_bytes
        return from_message(response.latents_gradient, "latents_gradient", shape, limit)

    async def _answer(self, request: decoder_pb2.DecodeGradientRequest) -> decoder_pb2.DecodeGradientResponse:
        give_up = time.monotonic() + self._settings.replica_wait_seconds
        with calling("decoder", self._settings.decoder_target):
            while True:
                try:
                    return await self._exchange(request)
                except grpc.aio.AioRpcError as error:
                    await self.close()
                    if not is_lost(error) or time.monotonic() >= give_up:
                        raise
                except asyncio.InvalidStateError:  # written to after the decoder was lost
                    await self.close()
                await asyncio.sleep(RETRY_SECONDS)

    async def _exchange(
        self, request: decoder_pb2.DecodeGradientRequest
    ) -> decoder_pb2.DecodeGradientResponse:
        if self._call is None:
            self._call = self._stub.DecodeGradient(**calls.outgoing())
            if request is not self._decode:
                await self._ask(self._decode)
        return await self._ask(request)

    async def _ask(self, request: decoder_pb2.DecodeGradientRequest) -> decoder_pb2.DecodeGradientResponse:
        await self._call.write(request)
        response = await self._call.read()
        if response is grpc.aio.EOF:
            # The status says why; OK without an answer is a decoder that went away.
            code = await self._call.code()
            lost = grpc.StatusCode.UNAVAILABLE if code is grpc.StatusCode.OK else code
            none = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(lost, none, none, "the decoder ended the stream")
        answer: decoder_pb2.DecodeGradientResponse = response
        return answer

    async def close(self) -> None:
        """Ends the stream; the decoder drops what it kept."""
        if self._call is not None:
            self._call.cancel()
            self._call = None


class GradientServices:
    """Encoder and decoder, as clip_gradient.ClipServices has them."""

    def __init__(
        self,
        encoder: "encoder_pb2_grpc.EncoderServiceAsyncStub",
        decoder: "decoder_pb2_grpc.DecoderServiceAsyncStub",
        settings: GatewaySettings,
        family: str = "",
    ) -> None:
        """family: which one's models; "": the services' own."""
        self._encoder, self._decoder = encoder, decoder
        self._settings, self._family = settings, family

    def open_decoding(self) -> DecoderStream:
        """A stream for one trajectory's decodes."""
        return DecoderStream(self._decoder, self._settings, self._family)

    async def embed_texts(self, texts: list[str], noised: bool = False) -> torch.Tensor:
        """As clip_gradient.ClipServices."""
        with calling("encoder", self._settings.encoder_target):
            request = encoder_pb2.EmbedTextRequest(texts=texts, noised_clip=noised, family=self._family)
            response = await self._encoder.EmbedText(request, **calls.outgoing())
        limit = self._settings.max_message_bytes
        return from_message(response.embeddings, "embeddings", (len(texts), None), limit)

    async def embed_images(self, images: list[bytes], noised: bool = False) -> torch.Tensor:
        """As clip_gradient.ClipServices.

        Raises:
            InvalidArgument, ResourceExhausted: an image prompt is no image, or too large.
        """
        for index, data in enumerate(images):
            field = f"guidance.clip.image_prompts[{index}]"
            await asyncio.to_thread(open_image, data, field, self._settings.max_input_pixels)
        return await self.embed(images, noised)

    async def embed(self, images: list[bytes], noised: bool = False) -> torch.Tensor:
        """As embed_images, of images that are known to be some."""
        with calling("encoder", self._settings.encoder_target):
            request = encoder_pb2.EmbedImageRequest(images=images, noised_clip=noised, family=self._family)
            response = await self._encoder.EmbedImage(request, **calls.outgoing())
        limit = self._settings.max_message_bytes
        return from_message(response.embeddings, "embeddings", (len(images), None), limit)

    async def guide_image(
        self, image: torch.Tensor, targets: Targets, options: ClipOptions, seed: int
    ) -> torch.Tensor:
        """The objective's gradient with respect to the pixels."""
        request = encoder_pb2.GuideImageRequest(
            image=to_message(image),
            targets=_targets(targets),
            num_cutouts=options.num_cutouts,
            cut_power=options.cut_power,
            seed=seed,
            similarity_scale=options.scale,
            tv_scale=options.tv_scale,
            range_scale=options.range_scale,
            family=self._family,
        )
        with calling("encoder", self._settings.encoder_target):
            response = await self._encoder.GuideImage(request, **calls.outgoing())
        limit = self._settings.max_message_bytes
        return from_message(response.image_gradient, "image_gradient", tuple(image.shape), limit)

    async def guide_latents(
        self, latents: torch.Tensor, timestep: float, targets: Targets, scale: float
    ) -> torch.Tensor:
        """The noise-aware objective's gradient with respect to x_t."""
        request = encoder_pb2.GuideLatentsRequest(
            latents=to_message(latents),
            timestep=timestep,
            targets=_targets(targets),
            similarity_scale=scale,
            family=self._family,
        )
        with calling("encoder", self._settings.encoder_target):
            response = await self._encoder.GuideLatents(request, **calls.outgoing())
        limit = self._settings.max_message_bytes
        return from_message(response.latents_gradient, "latents_gradient", tuple(latents.shape), limit)


def _targets(targets: Targets) -> encoder_pb2.GuideTargets:
    return encoder_pb2.GuideTargets(embeddings=to_message(targets.embeddings), weights=targets.weights)
