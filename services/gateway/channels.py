"""The gateway's channels to the model services: tensors in, tensors out."""

import asyncio
import contextlib
import copy
import json
from typing import Any, Self

import grpc
import torch
from sfumato_protos.v1 import (
    decoder_pb2,
    decoder_pb2_grpc,
    denoiser_pb2,
    encoder_pb2,
    encoder_pb2_grpc,
)

from sfumato.common import calls
from sfumato.common.errors import SfumatoError, Unavailable
from sfumato.common.server import channel_options
from sfumato.common.tensors import from_message, to_message
from sfumato.common.tls import open_channel
from sfumato.gateway.alignment import AttentionControl
from sfumato.gateway.attention_maps import Word
from sfumato.gateway.canary import Canary
from sfumato.gateway.conditioning import Conditioning, EncodedTexts
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.denoisers import DenoiserStream
from sfumato.gateway.embeddings import EmbeddingsCache
from sfumato.gateway.failures import calling
from sfumato.gateway.family_info import family_info
from sfumato.gateway.gradient_channels import GradientServices
from sfumato.gateway.parameters import FamilyInfo
from sfumato.gateway.previews import preview_file
from sfumato.gateway.replicas import Held, Replicas
from sfumato.gateway.safety import Concept, SafetyCheck

# Every unary call is a function of its request, so repeating one is safe. CANCELLED is of a replica that went
# away with the call in hand; our own cancellations are not retried.
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": "sfumato.v1.EncoderService"}, {"service": "sfumato.v1.DecoderService"}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
    }
)


class ModelServices:
    """Encoder, decoder and denoisers, as model_services.Services has them, for one of their families."""

    def __init__(self, settings: GatewaySettings, concepts: tuple[Concept, ...] = ()) -> None:
        """concepts: what images are withheld for; none: none are looked at."""
        self.settings = settings
        options: list[tuple[str, int | str]] = [
            *channel_options(settings.max_message_bytes),
            ("grpc.service_config", SERVICE_CONFIG),
            # A service that comes back, perhaps at another address, is found at once.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
        ]

        def channel(target: str, host: str = "") -> Any:
            named: list[tuple[str, int | str]] = [("grpc.ssl_target_name_override", host)] if host else []
            return open_channel(target, [*options, *named], settings.services_tls)

        self.open_channel = channel
        self._family = ""  # the services' own
        self.replicas = Replicas(settings.denoiser_targets, channel, settings.resolve_seconds)
        encoder, decoder = channel(settings.encoder_target), channel(settings.decoder_target)
        self._channels = [encoder, decoder]
        self.canary = Canary(self.replicas, settings.canary_seconds)
        self._followed: asyncio.Task[None] | None = None
        self._weights: dict[str, str] = {}  # digest by service, of its last answer
        self._embeddings = EmbeddingsCache(settings.max_embeddings_bytes)
        self._watcher = asyncio.create_task(self._watch_encoder(encoder))
        self.encoder: encoder_pb2_grpc.EncoderServiceAsyncStub = encoder_pb2_grpc.EncoderServiceStub(encoder)
        self.decoder: decoder_pb2_grpc.DecoderServiceAsyncStub = decoder_pb2_grpc.DecoderServiceStub(decoder)
        self.gradients = GradientServices(self.encoder, self.decoder, settings)
        self._safety = SafetyCheck(concepts, self.gradients) if concepts else None

    def of(self, family: str) -> Self:
        """The same channels for another family, one that the services were told to load, perhaps anew."""
        self._embeddings.distrust()
        other = copy.copy(self)
        other._family, other._weights = family, {}
        other.gradients = GradientServices(self.encoder, self.decoder, self.settings, family)
        return other

    async def family(self) -> FamilyInfo:
        """What the services hold, once each kind answers and a denoiser does a step.

        Raises:
            Unavailable: one does not answer.
            ForwardedError: one refuses.
            SfumatoError: their parts do not go together.
        """
        await self.replicas.resolve()
        name = self._family
        with calling("encoder", self.settings.encoder_target):
            encoder = await self.encoder.GetEncoderInfo(encoder_pb2.GetEncoderInfoRequest(family=name))
        with calling("decoder", self.settings.decoder_target):
            decoder = await self.decoder.GetDecoderInfo(decoder_pb2.GetDecoderInfoRequest(family=name))
        denoiser = await self._denoiser_info()
        info = family_info(encoder, decoder, denoiser)
        if self._safety is not None and not self._family and not encoder.embedding_size:
            raise SfumatoError(f"{encoder.family} has no clip/, which the safety check looks with")
        await self.canary.look()
        if not any(held.weights_digest for held in self._at_denoisers()):
            raise Unavailable(f"no denoiser does a canary step: {self.settings.denoiser_targets}")
        if self._followed is None:
            self._followed = asyncio.create_task(self.canary.follow())
        return info

    async def _denoiser_info(self) -> denoiser_pb2.GetDenoiserInfoResponse:
        request = denoiser_pb2.GetDenoiserInfoRequest(family=self._family)
        for replica in self.replicas.current:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return await replica.stub.GetDenoiserInfo(request)
        raise Unavailable(f"no denoiser answers: {self.settings.denoiser_targets}")

    async def encode_text(self, texts: list[str], adapter: str = "") -> EncodedTexts:
        """The conditioning of each text, and its words; of a text that was encoded lately, as it was kept."""
        return await self._embeddings.encoded(texts, adapter, self._encode, self._family)

    async def _encode(self, text: str, adapter: str) -> tuple[EncodedTexts, str]:
        """One text, and the digest of the weights that encoded it."""
        request = encoder_pb2.EncodeTextRequest(texts=[text], adapter=adapter, family=self._family)
        with calling("encoder", self.settings.encoder_target):
            response = await self.encoder.EncodeText(request, **calls.outgoing())
        limit = self.settings.max_message_bytes
        embeds = from_message(response.prompt_embeds, "prompt_embeds", (1, None, None), limit)
        words = [
            [Word(word.text, word.start_token, word.end_token) for word in text.words]
            for text in response.texts
        ]
        pooled = None
        if response.HasField("pooled_prompt_embeds"):
            message = response.pooled_prompt_embeds
            pooled = from_message(message, "pooled_prompt_embeds", (1, None), limit)
        self._weights["encoder"] = response.weights_digest
        encoded = EncodedTexts(embeds, list(response.num_truncated_tokens), words, pooled)
        return encoded, response.weights_digest

    async def _watch_encoder(self, channel: grpc.aio.Channel) -> None:
        """An encoder that comes back after its connection was lost may hold other weights."""
        state = channel.get_state()
        while state is not grpc.ChannelConnectivity.SHUTDOWN:
            await channel.wait_for_state_change(state)
            self._embeddings.distrust()
            state = channel.get_state()

    async def encode_image(self, image: bytes, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the image's latents."""
        request = decoder_pb2.EncodeRequest(image=image, width=width, height=height, family=self._family)
        with calling("decoder", self.settings.decoder_target):
            response = await self.decoder.Encode(request, **calls.outgoing())
        limit = self.settings.max_message_bytes
        mean = from_message(response.mean, "mean", (1, None, None, None), limit)
        return mean, from_message(response.std, "std", tuple(mean.shape), limit)

    async def decode(self, latents: torch.Tensor, image_format: str) -> bytes:
        """The encoded image; image_format is PNG, JPEG or WEBP.

        Raises:
            Withheld: the safety check does not let it out.
        """
        wire_format = decoder_pb2.ImageFormat.Value(f"IMAGE_FORMAT_{image_format}")
        request = decoder_pb2.DecodeRequest(
            latents=to_message(latents), image_format=wire_format, family=self._family
        )
        with calling("decoder", self.settings.decoder_target):
            response = await self.decoder.Decode(request, **calls.outgoing())
        self._weights["decoder"] = response.weights_digest
        if self._safety is not None:
            await self._safety.check(response.image)
        return response.image

    async def preview(self, latents: torch.Tensor, projection: torch.Tensor, image_format: str) -> bytes:
        """A preview of scaled latents by the family's projection, without a call. Raises as decode."""
        preview = await asyncio.to_thread(preview_file, latents, projection, image_format)
        if self._safety is not None:
            await self._safety.check(preview)
        return preview

    def open_trajectory(
        self, conditioning: Conditioning, control: AttentionControl | None = None
    ) -> DenoiserStream:
        """A stream for one trajectory, over whichever replicas live; control: for an edit's."""
        settings = self.settings
        return DenoiserStream(
            self.replicas,
            conditioning,
            settings.replica_wait_seconds,
            settings.step_timeout_seconds,
            control,
            self._family,
        )

    def weights(self) -> dict[str, str]:
        """Digest of the weights of encoder, decoder and denoiser, as they last answered."""
        digests = {held.weights_digest for held in self._at_denoisers()}
        return {**self._weights, "denoiser": ",".join(sorted(digests - {""}))}

    def engines(self) -> str:
        """What runs the UNet; several, by semicolons, while replicas differ."""
        engines = {held.engine for held in self._at_denoisers()}
        return "; ".join(sorted(engines - {""}))

    def _at_denoisers(self) -> list[Held]:
        found = (replica.families.get(self._family) for replica in self.replicas.current)
        return [held for held in found if held is not None and held.sound]

    async def close(self) -> None:
        """Closes all channels."""
        self._watcher.cancel()
        if self._followed is not None:
            self._followed.cancel()
        await self.replicas.close()
        for channel in self._channels:
            await channel.close()
