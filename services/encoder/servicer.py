"""Messages to calls of the CLIP engines."""

import asyncio
import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
from sfumato_protos.v1 import encoder_pb2, encoder_pb2_grpc

from sfumato.common.adapters import adapters_of
from sfumato.common.calls import Context
from sfumato.common.clip import clip_source
from sfumato.common.devices import setup_device
from sfumato.common.errors import InvalidArgument, NotFound, ResourceExhausted
from sfumato.common.family import family_name
from sfumato.common.images import open_image
from sfumato.common.inference_tensors import Model
from sfumato.common.tensors import check_finite, from_message, to_message
from sfumato.common.weights import weights_digest
from sfumato.common.work import run
from sfumato.encoder import guide_messages
from sfumato.encoder.config import EncoderSettings
from sfumato.encoder.engine_onnx import use_engine
from sfumato.encoder.engine_torch import JointEncoder, TextEncoder
from sfumato.encoder.guide import guide_image, guide_latents
from sfumato.encoder.noised import NoisedClip, Space
from sfumato.encoder.open_models import open_models

# Folders of the family, those of SDXL too.
WEIGHTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "clip", "clip_noised", "adapters")


class EncoderServicer(encoder_pb2_grpc.EncoderServiceServicer):
    """Serves EncoderService."""

    service_name = "sfumato.v1.EncoderService"
    text_encoder: TextEncoder
    weights_digest: str

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = settings
        self.joint: JointEncoder | None = None
        self.adapters = adapters_of(settings.family)
        self._adapted_encoders: dict[str, TextEncoder] = {}
        self.noised: NoisedClip | None = None
        # One model thread: the engine spreads each forward over the cores itself.
        self.executor = ThreadPoolExecutor(1, "clip")

    def register(self, server: grpc.aio.Server) -> None:
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(self, server)

    async def load(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self.executor, self._load)

    def _load(self) -> None:
        settings = self.settings
        device = setup_device(settings.device, settings.num_threads)
        threads = settings.num_threads or os.cpu_count() or 1
        self.text_encoder = TextEncoder(settings.family, device)
        use_engine(self.text_encoder, settings.engine, settings.onnx_cache, threads, settings.triton_url)
        if source := clip_source(settings.family, settings.clip):
            self.joint = JointEncoder(source, device)
        if (settings.family / "clip_noised").is_dir():
            self.noised = NoisedClip(settings.family, device, self.joint)
        self.weights_digest = weights_digest(settings.family, *WEIGHTS)
        self.text_encoder.encode(["warm"])

    def open_models(self) -> list[Model]:
        return open_models(self.text_encoder, self.joint, self.executor, self.settings, self._checked_texts)

    async def close(self) -> None:
        self.executor.shutdown(cancel_futures=True)

    async def GetEncoderInfo(
        self, request: encoder_pb2.GetEncoderInfoRequest, context: Context
    ) -> encoder_pb2.GetEncoderInfoResponse:
        return encoder_pb2.GetEncoderInfoResponse(
            family=family_name(self.settings.family),
            max_tokens=self.text_encoder.max_tokens,
            hidden_size=self.text_encoder.hidden_size,
            embedding_size=self.joint.embedding_size if self.joint else 0,
            noised_clip=self.noised is not None and self.noised.space is not None,
            noised_clip_side=self.noised.model.side if self.noised else 0,
            weights_digest=self.weights_digest,
            pooled_size=self.text_encoder.pooled_size,
            adapters=list(self.adapters),
        )

    async def EncodeText(
        self, request: encoder_pb2.EncodeTextRequest, context: Context
    ) -> encoder_pb2.EncodeTextResponse:
        texts = self._checked_texts(request.texts)
        encoder = await self._text_encoder(request.adapter)
        encoded = await run(self.executor, "encode_text", encoder.encode, texts)
        # On the same thread: the tokenizer keeps padding and truncation in itself from call to call.
        pooled = encoded.pooled_prompt_embeds
        all_words = await run(self.executor, "words", self.text_encoder.words, texts)
        return encoder_pb2.EncodeTextResponse(
            weights_digest=self.weights_digest,
            prompt_embeds=to_message(encoded.prompt_embeds),
            pooled_prompt_embeds=None if pooled is None else to_message(pooled),
            num_truncated_tokens=encoded.num_cut,
            texts=[
                encoder_pb2.TextWords(words=[encoder_pb2.Word(**dataclasses.asdict(word)) for word in words])
                for words in all_words
            ],
        )

    async def EmbedText(
        self, request: encoder_pb2.EmbedTextRequest, context: Context
    ) -> encoder_pb2.EmbedTextResponse:
        texts = self._checked_texts(request.texts)
        space = self._space(request.noised_clip)
        features = await run(self.executor, "embed_text", space.embed_texts, texts)
        return encoder_pb2.EmbedTextResponse(embeddings=to_message(features))

    async def EmbedImage(
        self, request: encoder_pb2.EmbedImageRequest, context: Context
    ) -> encoder_pb2.EmbedImageResponse:
        self._check_count("images", len(request.images))
        space = self._space(request.noised_clip)
        limit = self.settings.max_image_pixels

        def embed(files: Sequence[bytes]) -> "encoder_pb2.EmbedImageResponse":
            images = [open_image(data, f"images[{i}]", limit) for i, data in enumerate(files)]
            return encoder_pb2.EmbedImageResponse(embeddings=to_message(space.embed_images(images)))

        return await run(self.executor, "embed_image", embed, request.images)

    async def GuideImage(
        self, request: encoder_pb2.GuideImageRequest, context: Context
    ) -> encoder_pb2.GuideImageResponse:
        joint = self._joint()
        image = guide_messages.image_of(request, self.settings.max_gradient_pixels)
        targets = guide_messages.targets_of(request.targets, joint.embedding_size, self.settings.max_texts)
        objective = guide_messages.objective_of(request)
        guided = await run(self.executor, "guide_image", guide_image, joint, image, targets, objective)
        return guide_messages.image_response(guided)

    async def GuideLatents(
        self, request: encoder_pb2.GuideLatentsRequest, context: Context
    ) -> encoder_pb2.GuideLatentsResponse:
        noised, space = self._noised(), self._space(noised=True)
        limit = noised.model.in_channels * self.settings.max_latent_area
        latents = from_message(request.latents, "latents", noised.latents_shape, limit)
        check_finite(latents, "latents")
        timestep = guide_messages.finite(request.timestep, "timestep")
        scale = guide_messages.finite(request.similarity_scale, "similarity_scale")
        targets = guide_messages.targets_of(request.targets, space.embedding_size, self.settings.max_texts)
        guided = await run(
            self.executor, "guide_latents", guide_latents, noised, latents, timestep, targets, scale
        )
        return guide_messages.latents_response(guided)

    async def _text_encoder(self, adapter: str) -> TextEncoder:
        """With that adapter; "": without."""
        if not adapter:
            return self.text_encoder
        if adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise NotFound(f"no adapter {adapter!r:.60}; the family has {known}", field="adapter",
                           limit=known, value=adapter)  # fmt: skip
        # On the model's thread, so that of two first requests one loads it. A few MB each, so all are kept.
        return await run(self.executor, "load_adapter", self._adapted, adapter)

    def _adapted(self, adapter: str) -> TextEncoder:
        if adapter not in self._adapted_encoders:
            self._adapted_encoders[adapter] = self.text_encoder.with_adapter(self.adapters[adapter])
        return self._adapted_encoders[adapter]

    def _joint(self) -> JointEncoder:
        if self.joint is None:
            raise NotFound(f"{family_name(self.settings.family)} has no clip/ folder, so no joint space")
        return self.joint

    def _noised(self) -> NoisedClip:
        if self.noised is None:
            name = family_name(self.settings.family)
            raise NotFound(f"{name} has no clip_noised/ folder, so no noise-aware CLIP")
        return self.noised

    def _space(self, noised: bool) -> Space:
        """The joint space, or the one that the noise-aware CLIP compares in."""
        return (noised and self._noised().space) or self._joint()

    def _check_count(self, field: str, count: int) -> None:
        if count < 1:
            raise InvalidArgument(field, "at least 1", count)
        if count > self.settings.max_texts:
            raise ResourceExhausted(field, f"at most {self.settings.max_texts}", count)

    def _checked_texts(self, texts: Sequence[str]) -> list[str]:
        self._check_count("texts", len(texts))
        for index, text in enumerate(texts):
            if len(text) > self.settings.max_characters:
                limit = f"at most {self.settings.max_characters} characters"
                raise InvalidArgument(f"texts[{index}]", limit, f"{len(text)} characters")
        return list(texts)
