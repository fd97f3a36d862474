"""The Denoise stream to steps of the UNet."""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

import grpc
import torch
from sfumato_protos.v1 import denoiser_pb2, denoiser_pb2_grpc

from sfumato.common.calls import Context
from sfumato.common.devices import setup_device
from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.common.family import family_name, read_json
from sfumato.common.gradients import GraphCount
from sfumato.common.inference_tensors import Model
from sfumato.common.tensors import check_finite, from_message, to_message
from sfumato.common.weights import engine_version, weights_digest
from sfumato.denoiser.attention import AttentionUNet, num_cross_attention_layers
from sfumato.denoiser.attention_messages import attention_messages, control_of, places_of
from sfumato.denoiser.attention_steps import edit_step, step_with_attention
from sfumato.denoiser.batching import StepQueue, forwards_at_a_time
from sfumato.denoiser.conditioning import Conditioning, guidance_embedding, needed
from sfumato.denoiser.config import MAX_TOKENS, DenoiserSettings
from sfumato.denoiser.engine_onnx import open_unet
from sfumato.denoiser.engine_torch import TorchUNet, Unet
from sfumato.denoiser.gradient_messages import KeptStep
from sfumato.denoiser.gradients import GradientQueue
from sfumato.denoiser.open_models import open_models
from sfumato.denoiser.probes import Control

POOLED: tuple[Literal["pooled_prompt_embeds", "time_ids"], ...] = ("pooled_prompt_embeds", "time_ids")
# Not "triton": a GPU's torch brings a compiler of that name.
ENGINE_NAMES = {"auto": "onnxruntime", "triton": "Triton Inference Server"}


@dataclass(frozen=True)
class Opened:
    """What a stream holds: the conditioning, and for edits the control."""

    conditioning: Conditioning
    control: Control | None


class DenoiserServicer(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Serves DenoiserService."""

    service_name = "sfumato.v1.DenoiserService"
    unet: Unet  # for forward passes
    torch_unet: TorchUNet  # for gradients and attention; the same object where torch is the engine
    attention: AttentionUNet
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
        self.torch_unet = await asyncio.to_thread(TorchUNet, family, device)
        settings = self.settings
        self.unet = await asyncio.to_thread(
            open_unet, self.torch_unet, settings.engine, settings.onnx_cache, settings.triton_url
        )
        self.weights_digest = await asyncio.to_thread(weights_digest, family, "unet")
        named = ENGINE_NAMES.get(settings.engine, settings.engine)
        self.engine = engine_version("torch" if self.unet is self.torch_unet else named, device)
        self.attention = AttentionUNet(self.torch_unet.model, device)
        self.queue = StepQueue(self.unet, forwards_at_a_time(settings.engine, device, workers))
        self.gradients = GradientQueue(self.torch_unet, workers)
        config = self.unet.config
        latents = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size)
        shapes = {"prompt_embeds": (8, config.cross_attention_dim), **needed(config)}
        warm = Conditioning(**{name: torch.zeros(2, *shape) for name, shape in shapes.items()})
        for rows in (1, 2):
            await self.queue.noise_pred(latents, 1.0, warm[:rows])

    def open_models(self) -> list[Model]:
        return open_models(self.unet.config, self.queue, self.settings)

    async def close(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()
            self.gradients.close()

    async def GetDenoiserInfo(
        self, request: denoiser_pb2.GetDenoiserInfoRequest, context: Context
    ) -> denoiser_pb2.GetDenoiserInfoResponse:
        config = self.unet.config
        more = needed(config)
        return denoiser_pb2.GetDenoiserInfoResponse(
            family=family_name(self.settings.family),
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            sample_size=config.sample_size,
            cross_attention_dim=config.cross_attention_dim,
            max_latent_area=self.settings.max_latent_area,
            scheduler_config=self.scheduler_config,
            num_cross_attention_layers=num_cross_attention_layers(self.torch_unet.model),
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
                    opened = self._opened(request.open)
                elif kind == "step" and opened is not None:
                    yield await self._step(request.step, opened.conditioning, kept)
                elif kind == "gradient" and opened is not None:
                    yield await kept.gradient(request.gradient)
                elif kind == "edit" and opened is not None:
                    yield await self._edit(request.edit, opened)
                else:
                    raise InvalidArgument("message", "`open` once, then `step`s or `edit`s", kind or "empty")
        finally:
            kept.drop()

    def _opened(self, request: denoiser_pb2.OpenTrajectory) -> Opened:
        width = self.unet.config.cross_attention_dim
        limit = self.settings.max_rows * MAX_TOKENS * width
        embeds = from_message(request.prompt_embeds, "open.prompt_embeds", (None, None, width), limit)
        if len(embeds) > self.settings.max_rows:
            raise ResourceExhausted(
                "open.prompt_embeds", f"at most {self.settings.max_rows} rows", len(embeds)
            )
        check_finite(embeds, "open.prompt_embeds")
        control = None
        if request.HasField("attention_control"):
            control = control_of(request.attention_control, embeds.shape[1])
        given = {"prompt_embeds": embeds, **self._more_conditioning(request, len(embeds))}
        return Opened(Conditioning(**given), control)

    def _more_conditioning(self, request: denoiser_pb2.OpenTrajectory, rows: int) -> dict[str, torch.Tensor]:
        """What the UNet takes beside prompt_embeds; what it does not take must not be given."""
        more = needed(self.unet.config)
        given: dict[str, torch.Tensor] = {}
        for name in POOLED:
            field = f"open.{name}"
            if request.HasField(name) != (name in more):
                wanted = "given" if name in more else "left out"
                raise InvalidArgument(field, f"{wanted} for this UNet", "the opposite")
            if name in more:
                shape = (rows, *more[name])
                given[name] = from_message(getattr(request, name), field, shape, math.prod(shape))
                check_finite(given[name], field)
        scale = request.guidance_scale
        if not 0 <= scale <= 100 or (scale and "timestep_cond" not in more):
            limit = "0 to 100" if "timestep_cond" in more else "left out for this UNet"
            raise InvalidArgument("open.guidance_scale", limit, scale)
        if "timestep_cond" in more:
            given["timestep_cond"] = guidance_embedding(scale, more["timestep_cond"][0], rows)
        return given

    async def _step(
        self, request: denoiser_pb2.DenoiseStep, conditioning: Conditioning, kept: KeptStep
    ) -> denoiser_pb2.DenoiseResponse:
        latents = self._latents(request, "step", 1)
        rows = _selected(conditioning, request.rows)
        kept.drop()
        if request.keep_graph:
            noise_pred = await kept.keep(request.step, latents, request.timestep, rows)
        elif not request.attention_rows:
            noise_pred = await self.queue.noise_pred(latents, request.timestep, rows)
        if not request.attention_rows:
            return denoiser_pb2.DenoiseResponse(step=request.step, noise_pred=to_message(noise_pred))
        self._check_attention("step.attention_rows")
        places = places_of(request.rows or range(len(conditioning)), request.attention_rows)
        seen, maps = await step_with_attention(
            self.queue, self.attention, latents, request.timestep, rows, places
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
            self.queue, self.attention, latents, request.timestep, opened.conditioning, opened.control,
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
        channels = self.unet.config.in_channels
        limit = count * channels * self.settings.max_latent_area
        latents = from_message(request.latents, f"{kind}.latents", (count, channels, None, None), limit)
        check_finite(latents, f"{kind}.latents")
        if not math.isfinite(request.timestep):
            raise InvalidArgument(f"{kind}.timestep", "finite", request.timestep)
        return latents

    def _check_attention(self, field: str) -> None:
        if not num_cross_attention_layers(self.torch_unet.model):
            raise InvalidArgument(field, "left out: this UNet has no cross-attention", "given")


def _selected(conditioning: Conditioning, rows: Sequence[int]) -> Conditioning:
    """The rows of conditioning that a step asks for; none named: all."""
    if not rows:
        return conditioning
    if len(rows) > len(conditioning) or not all(0 <= row < len(conditioning) for row in rows):
        raise InvalidArgument(
            "step.rows", f"at most {len(conditioning)} of 0 to {len(conditioning) - 1}", rows
        )
    return conditioning[list(rows)]
