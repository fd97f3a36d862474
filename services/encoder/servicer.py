"""Messages to calls of the CLIP engines."""

import asyncio
import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
from sfumato_protos.v1 import encoder_pb2, encoder_pb2_grpc

from sfumato.common.calls import Context
from sfumato.common.devices import device_of, setup_device
from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.common.families import Families
from sfumato.common.family_loader import Source
from sfumato.common.images import open_image
from sfumato.common.inference_tensors import Model
from sfumato.common.model_service import SERVICE as MODEL_SERVICE
from sfumato.common.model_service import add_model_service
from sfumato.common.tensors import check_finite, from_message, to_message
from sfumato.common.work import run
from sfumato.encoder import guide_messages
from sfumato.encoder.config import EncoderSettings
from sfumato.encoder.guide import guide_image, guide_latents
from sfumato.encoder.models import EncoderModels, load_models, num_bytes, warm
from sfumato.encoder.open_models import open_models
from sfumato.encoder.rows import EncoderRows


class EncoderServicer(encoder_pb2_grpc.EncoderServiceServicer):
    """Serves EncoderService."""

    service_name = "sfumato.v1.EncoderService"
    also_serves = (MODEL_SERVICE,)

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = settings
        # One model thread: the engine spreads each forward over the cores itself.
        self.executor = ThreadPoolExecutor(1, "clip")
        self.rows = EncoderRows(self.executor, os.cpu_count() or 1)
        self.device = device_of(settings.device)
        source = Source(load_models, num_bytes, self.device, self._warm)
        self.families: Families[EncoderModels] = Families(settings, source)

    def register(self, server: grpc.aio.Server) -> None:
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(self, server)
        add_model_service(server, self.families)

    async def load(self) -> None:
        settings = self.settings
        await asyncio.get_running_loop().run_in_executor(
            self.executor, setup_device, settings.device, settings.num_threads
        )
        await self.families.load_default()

    async def _warm(self, models: EncoderModels) -> None:
        await run(self.executor, "warm", warm, models, self.device)

    def open_models(self) -> list[Model]:
        own = self.families.own
        return open_models(own.text_encoder, own.joint_or_none, self.rows, self.settings, self._checked_texts)

    async def close(self) -> None:
        self.families.close()
        self.rows.close()
        self.executor.shutdown(cancel_futures=True)

    async def GetEncoderInfo(
        self, request: encoder_pb2.GetEncoderInfoRequest, context: Context
    ) -> encoder_pb2.GetEncoderInfoResponse:
        with self.families.use(request.family) as models:
            joint, noised = models.joint_or_none, models.noised_or_none
            return encoder_pb2.GetEncoderInfoResponse(
                family=request.family or self.families.default,
                max_tokens=models.text_encoder.max_tokens,
                hidden_size=models.text_encoder.hidden_size,
                embedding_size=joint.embedding_size if joint else 0,
                noised_clip=noised is not None and noised.space is not None,
                noised_clip_side=noised.model.side if noised else 0,
                weights_digest=models.weights_digest,
                pooled_size=models.text_encoder.pooled_size,
                adapters=list(models.adapters),
            )

    async def EncodeText(
        self, request: encoder_pb2.EncodeTextRequest, context: Context
    ) -> encoder_pb2.EncodeTextResponse:
        texts = self._checked_texts(request.texts)
        with self.families.use(request.family) as models:
            encoder = models.text_encoder
            if request.adapter:
                # On the model's thread, so that of two first requests one loads it.
                encoder = await run(self.executor, "load_adapter", models.with_adapter, request.adapter)
            encoded = await self.rows.encode(encoder, texts)
            all_words = await self.rows.words(models.text_encoder, texts)
        pooled = encoded.pooled_prompt_embeds
        return encoder_pb2.EncodeTextResponse(
            weights_digest=models.weights_digest,
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
        with self.families.use(request.family) as models:
            features = await self.rows.embed_texts(models.space(request.noised_clip), texts)
        return encoder_pb2.EmbedTextResponse(embeddings=to_message(features))

    async def EmbedImage(
        self, request: encoder_pb2.EmbedImageRequest, context: Context
    ) -> encoder_pb2.EmbedImageResponse:
        self._check_count("images", len(request.images))
        limit = self.settings.max_image_pixels
        with self.families.use(request.family) as models:
            features = await self.rows.embed_images(
                models.space(request.noised_clip),
                lambda: [open_image(data, f"images[{i}]", limit) for i, data in enumerate(request.images)],
            )
        return encoder_pb2.EmbedImageResponse(embeddings=to_message(features))

    async def GuideImage(
        self, request: encoder_pb2.GuideImageRequest, context: Context
    ) -> encoder_pb2.GuideImageResponse:
        with self.families.use(request.family) as models:
            joint, most = models.joint, self.settings.max_texts
            image = guide_messages.image_of(request, self.settings.max_gradient_pixels)
            targets = guide_messages.targets_of(request.targets, joint.embedding_size, most)
            objective = guide_messages.objective_of(request)
            guided = await run(self.executor, "guide_image", guide_image, joint, image, targets, objective)
        return guide_messages.image_response(guided)

    async def GuideLatents(
        self, request: encoder_pb2.GuideLatentsRequest, context: Context
    ) -> encoder_pb2.GuideLatentsResponse:
        with self.families.use(request.family) as models:
            noised, space = models.noised, models.space(noised=True)
            limit = noised.model.in_channels * self.settings.max_latent_area
            latents = from_message(request.latents, "latents", noised.latents_shape, limit)
            check_finite(latents, "latents")
            timestep = guide_messages.finite(request.timestep, "timestep")
            scale = guide_messages.finite(request.similarity_scale, "similarity_scale")
            most = self.settings.max_texts
            targets = guide_messages.targets_of(request.targets, space.embedding_size, most)
            guided = await run(
                self.executor, "guide_latents", guide_latents, noised, latents, timestep, targets, scale
            )
        return guide_messages.latents_response(guided)

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
