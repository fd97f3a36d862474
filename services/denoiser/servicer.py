"""The Denoise stream to steps of the UNet."""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import torch
from sfumato_protos.v1 import denoiser_pb2, denoiser_pb2_grpc

from sfumato.common.adapters import adapters_of
from sfumato.common.calls import Context
from sfumato.common.devices import setup_device
from sfumato.common.errors import InvalidArgument
from sfumato.common.family import family_name, read_json
from sfumato.common.gradients import GraphCount
from sfumato.common.inference_tensors import Model
from sfumato.common.tensors import check_finite, from_message, to_message
from sfumato.common.weights import engine_version, weights_digest
from sfumato.denoiser.attention import AttentionUNet
from sfumato.denoiser.attention_messages import attention_messages, control_of, places_of
from sfumato.denoiser.attention_steps import edit_step, step_with_attention
from sfumato.denoiser.conditioning import Conditioning, needed
from sfumato.denoiser.conditioning_messages import conditioning_of, selected
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.engine_onnx import open_unet
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.denoiser.gradient_messages import KeptStep
from sfumato.denoiser.gradients import GradientQueue
from sfumato.denoiser.open_models import open_models
from sfumato.denoiser.probes import Control
from sfumato.denoiser.step_queue import StepQueue, forwards_at_a_time
from sfumato.denoiser.unets import Adapters, Unets


@dataclass(frozen=True)
class Opened:
    """What a stream holds: which UNet, the conditioning, and for edits the control."""

    unets: Unets
    conditioning: Conditioning
    control: Control | None


class DenoiserServicer(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Serves DenoiserService."""

    service_name = "sfumato.v1.DenoiserService"
    unets: Unets
    adapters: Adapters
    queue: StepQueue
    gradients: GradientQueue
    scheduler_config: str
    weights_digest: str
    engine: str  # what runs `unet`

    def __init__(self, settings: DenoiserSettings) -> None:
        self.settings = settings
        self.graphs = GraphCount(settings.max_kept_graphs)

    def register(self, server: grpc.aio.Server) -> None:
        denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server(self, server)

    async def load(self) -> None:
        family = self.settings.family
        self.scheduler_config = json.dumps(read_json(family, "scheduler", "scheduler_config.json"))
        device = setup_device(self.settings.device, 1)
        workers = self.settings.num_threads or os.cpu_count() or 1
        settings = self.settings
        engine, dtype = settings.unet_engine, getattr(torch, settings.dtype)
        torch_unet = await asyncio.to_thread(TorchUNet, family, device, dtype)
        unet = await asyncio.to_thread(
            open_unet, torch_unet, engine, settings.onnx_cache, settings.triton_url
        )
        self.unets = Unets(unet, torch_unet, AttentionUNet(torch_unet.model, device))
        self.adapters = Adapters(torch_unet, adapters_of(family), settings.max_adapters)
        self.weights_digest = await asyncio.to_thread(weights_digest, family, "unet", "adapters")
        named = "torch" if unet is torch_unet else "onnxruntime"
        # What Triton runs on may change, and a row may share its forward with others.
        self.engine = "" if settings.engine == "triton" else engine_version(named, device)
        self.queue = StepQueue(forwards_at_a_time(engine, device, workers))
        self.gradients = GradientQueue(workers)
        config = unet.config
        # A GPU chooses its kernels by size; a CPU would only take its time.
        side = min(config.sample_size, 8) if device.type == "cpu" else config.sample_size
        latents = torch.zeros(1, config.in_channels, side, side)
        shapes = {"prompt_embeds": (8, config.cross_attention_dim), **needed(config)}
        warm = Conditioning(**{name: torch.zeros(2, *shape) for name, shape in shapes.items()})
        for rows in (1, 2):
            await self.queue.noise_pred(unet, latents, 1.0, warm[:rows])

    def open_models(self) -> list[Model]:
        return open_models(self.unets.unet, self.queue, self.settings)

    async def close(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()
            self.gradients.close()

    async def GetDenoiserInfo(
        self, request: denoiser_pb2.GetDenoiserInfoRequest, context: Context
    ) -> denoiser_pb2.GetDenoiserInfoResponse:
        config = self.unets.unet.config
        more = needed(config)
        return denoiser_pb2.GetDenoiserInfoResponse(
            family=family_name(self.settings.family),
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            sample_size=config.sample_size,
            cross_attention_dim=config.cross_attention_dim,
            max_latent_area=self.settings.max_latent_area,
            scheduler_config=self.scheduler_config,
            num_cross_attention_layers=self.unets.num_cross_attention_layers,
            adapters=self.adapters.names,
            weights_digest=self.weights_digest,
            engine=self.engine,
            pooled_size=sum(more.get("pooled_prompt_embeds", ())),
            num_time_ids=sum(more.get("time_ids", ())),
            guidance_embedded="timestep_cond" in more,
        )

    async def Denoise(
        self,
        request_iterator: AsyncIterator[denoiser_pb2.DenoiseRequest],
        context: Context,
    ) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        opened: Opened | None = None
        kept = KeptStep(self.gradients, self.graphs)
        try:
            async for request in request_iterator:
                kind = request.WhichOneof("message")
                if kind == "open" and opened is None:
                    opened = await self._opened(request.open)
                elif kind == "step" and opened is not None:
                    yield await self._step(request.step, opened, kept)
                elif kind == "gradient" and opened is not None:
                    yield await kept.gradient(request.gradient)
                elif kind == "edit" and opened is not None:
                    yield await self._edit(request.edit, opened)
                else:
                    raise InvalidArgument("message", "`open` once, then `step`s or `edit`s", kind or "empty")
        finally:
            kept.drop()

    async def _opened(self, request: denoiser_pb2.OpenTrajectory) -> Opened:
        unets = await self.adapters.get(request.adapter) if request.adapter else self.unets
        conditioning = conditioning_of(request, unets.unet.config, self.settings.max_rows)
        control = None
        if request.HasField("attention_control"):
            control = control_of(request.attention_control, conditioning.prompt_embeds.shape[1])
        return Opened(unets, conditioning, control)

    async def _step(
        self, request: denoiser_pb2.DenoiseStep, opened: Opened, kept: KeptStep
    ) -> denoiser_pb2.DenoiseResponse:
        latents = self._latents(request, "step", 1)
        unets, rows = opened.unets, selected(opened.conditioning, request.rows)
        kept.drop()
        if request.keep_graph:
            noise_pred = await kept.keep(unets.torch_unet, request.step, latents, request.timestep, rows)
        elif not request.attention_rows:
            noise_pred = await self.queue.noise_pred(unets.unet, latents, request.timestep, rows)
        if not request.attention_rows:
            return denoiser_pb2.DenoiseResponse(step=request.step, noise_pred=to_message(noise_pred))
        self._check_attention("step.attention_rows")
        places = places_of(request.rows or range(len(opened.conditioning)), request.attention_rows)
        seen, maps = await step_with_attention(
            self.queue, unets.unet, unets.attention, latents, request.timestep, rows, places
        )
        # A kept step's prediction is the one that will be differentiated.
        noise_pred = noise_pred if request.keep_graph else seen
        return denoiser_pb2.DenoiseResponse(
            step=request.step, noise_pred=to_message(noise_pred), attention=attention_messages(maps)
        )

    async def _edit(self, request: denoiser_pb2.EditStep, opened: Opened) -> denoiser_pb2.DenoiseResponse:
        latents = self._latents(request, "edit", 2)
        self._check_attention("edit")
        if opened.control is None:
            raise InvalidArgument("edit", "in a stream with open.attention_control", "without")
        if len(opened.conditioning) != 3:
            rows = "3 rows: null text, source, target"
            raise InvalidArgument("open.prompt_embeds", rows, len(opened.conditioning))
        noise_pred, maps = await edit_step(
            self.queue, opened.unets.unet, opened.unets.attention, latents, request.timestep,
            opened.conditioning, opened.control,
            request.replace_cross_attention, request.replace_self_attention,
        )  # fmt: skip
        return denoiser_pb2.DenoiseResponse(
            step=request.step,
            noise_pred=to_message(noise_pred),
            attention=attention_messages(maps) if request.attention else [],
        )

    def _latents(
        self, request: denoiser_pb2.DenoiseStep | denoiser_pb2.EditStep, kind: str, count: int
    ) -> torch.Tensor:
        """The step's latents [count, C, h, w]; its timestep is checked too."""
        channels = self.unets.unet.config.in_channels
        limit = count * channels * self.settings.max_latent_area
        latents = from_message(request.latents, f"{kind}.latents", (count, channels, None, None), limit)
        check_finite(latents, f"{kind}.latents")
        if not math.isfinite(request.timestep):
            raise InvalidArgument(f"{kind}.timestep", "finite", request.timestep)
        return latents

    def _check_attention(self, field: str) -> None:
        if not self.unets.num_cross_attention_layers:
            raise InvalidArgument(field, "left out: this UNet has no cross-attention", "given")
