"""The Denoise stream to steps of the UNet."""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Sequence

import grpc
import torch
from sfumato_protos.v1 import denoiser_pb2, denoiser_pb2_grpc

from sfumato.common.calls import Context
from sfumato.common.devices import setup_device
from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.common.family import family_name, read_json
from sfumato.common.tensors import check_finite, from_message, to_message
from sfumato.denoiser.batching import StepQueue
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.engine_torch import TorchUNet

MAX_TOKENS = 1024


class DenoiserServicer(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Serves DenoiserService."""

    service_name = "sfumato.v1.DenoiserService"
    unet: TorchUNet
    queue: StepQueue
    scheduler_config: str

    def __init__(self, settings: DenoiserSettings) -> None:
        self.settings = settings

    def register(self, server: grpc.aio.Server) -> None:
        denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server(self, server)

    async def load(self) -> None:
        family = self.settings.family
        self.scheduler_config = json.dumps(read_json(family, "scheduler", "scheduler_config.json"))
        device = setup_device(self.settings.device, 1)
        workers = self.settings.num_threads or os.cpu_count() or 1
        self.unet = await asyncio.to_thread(TorchUNet, family, device)
        self.queue = StepQueue(self.unet, 1 if device.type != "cpu" else workers)
        config = self.unet.config
        latents = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size)
        for rows in (1, 2):
            await self.queue.noise_pred(latents, 1.0, torch.zeros(rows, 8, config.cross_attention_dim))

    async def close(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()

    async def GetDenoiserInfo(
        self, request: denoiser_pb2.GetDenoiserInfoRequest, context: Context
    ) -> denoiser_pb2.GetDenoiserInfoResponse:
        config = self.unet.config
        return denoiser_pb2.GetDenoiserInfoResponse(
            family=family_name(self.settings.family),
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            sample_size=config.sample_size,
            cross_attention_dim=config.cross_attention_dim,
            max_latent_area=self.settings.max_latent_area,
            scheduler_config=self.scheduler_config,
        )

    async def Denoise(
        self,
        request_iterator: AsyncIterator[denoiser_pb2.DenoiseRequest],
        context: Context,
    ) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        prompt_embeds: torch.Tensor | None = None
        async for request in request_iterator:
            kind = request.WhichOneof("message")
            if kind == "open" and prompt_embeds is None:
                prompt_embeds = self._opened(request.open)
            elif kind == "step" and prompt_embeds is not None:
                yield await self._step(request.step, prompt_embeds)
            else:
                raise InvalidArgument("message", "`open` once, then `step`s", kind or "empty")

    def _opened(self, request: denoiser_pb2.OpenTrajectory) -> torch.Tensor:
        width = self.unet.config.cross_attention_dim
        limit = self.settings.max_rows * MAX_TOKENS * width
        embeds = from_message(request.prompt_embeds, "open.prompt_embeds", (None, None, width), limit)
        if len(embeds) > self.settings.max_rows:
            raise ResourceExhausted(
                "open.prompt_embeds", f"at most {self.settings.max_rows} rows", len(embeds)
            )
        check_finite(embeds, "open.prompt_embeds")
        return embeds

    async def _step(
        self, request: denoiser_pb2.DenoiseStep, prompt_embeds: torch.Tensor
    ) -> denoiser_pb2.DenoiseResponse:
        channels = self.unet.config.in_channels
        limit = channels * self.settings.max_latent_area
        latents = from_message(request.latents, "step.latents", (1, channels, None, None), limit)
        check_finite(latents, "step.latents")
        if not math.isfinite(request.timestep):
            raise InvalidArgument("step.timestep", "finite", request.timestep)
        rows = _selected(prompt_embeds, request.rows)
        noise_pred = await self.queue.noise_pred(latents, request.timestep, rows)
        return denoiser_pb2.DenoiseResponse(step=request.step, noise_pred=to_message(noise_pred))


def _selected(prompt_embeds: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The rows of conditioning that a step asks for; none named: all."""
    if not rows:
        return prompt_embeds
    if len(rows) > len(prompt_embeds) or not all(0 <= row < len(prompt_embeds) for row in rows):
        raise InvalidArgument(
            "step.rows", f"at most {len(prompt_embeds)} of 0 to {len(prompt_embeds) - 1}", rows
        )
    return prompt_embeds[list(rows)]
