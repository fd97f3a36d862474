"""The Denoise stream to steps of the UNet."""

import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import torch
from sfumato_protos.v1 import denoiser_pb2, denoiser_pb2_grpc

from sfumato.common.calls import Context
from sfumato.common.devices import setup_device
from sfumato.common.errors import InvalidArgument
from sfumato.common.families import Families
from sfumato.common.family_loader import Source
from sfumato.common.gradients import GraphCount
from sfumato.common.inference_tensors import Model
from sfumato.common.model_service import SERVICE as MODEL_SERVICE
from sfumato.common.model_service import add_model_service
from sfumato.common.tensors import check_finite, from_message, to_message
from sfumato.denoiser.attention_messages import attention_messages, control_of, places_of
from sfumato.denoiser.attention_steps import edit_step, step_with_attention
from sfumato.denoiser.conditioning import Conditioning, needed
from sfumato.denoiser.conditioning_messages import conditioning_of, selected
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.gradient_messages import KeptStep
from sfumato.denoiser.gradients import GradientQueue
from sfumato.denoiser.models import DenoiserModels, load_models, num_bytes
from sfumato.denoiser.open_models import open_models
from sfumato.denoiser.probes import Control
from sfumato.denoiser.run_messages import run_of
from sfumato.denoiser.runs import do_run
from sfumato.denoiser.step_queue import StepQueue, forwards_at_a_time
from sfumato.denoiser.unets import Unets


@dataclass(frozen=True)
class Opened:
    """What a stream holds: which UNet, the conditioning, and for edits the control."""

    unets: Unets
    conditioning: Conditioning
    control: Control | None


class DenoiserServicer(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Serves DenoiserService."""

    service_name = "sfumato.v1.DenoiserService"
    also_serves = (MODEL_SERVICE,)

    def __init__(self, settings: DenoiserSettings) -> None:
        self.settings = settings
        self.graphs = GraphCount(settings.max_kept_graphs)
        self.device = setup_device(settings.device, 1)
        workers = settings.cpu_threads
        self.queue = StepQueue(forwards_at_a_time(settings.unet_engine, self.device, workers))
        self.gradients = GradientQueue(workers)
        source = Source(load_models, num_bytes, self.device, self._warm)
        self.families: Families[DenoiserModels] = Families(settings, source)

    def register(self, server: grpc.aio.Server) -> None:
        denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server(self, server)
        add_model_service(server, self.families)

    async def load(self) -> None:
        await self.families.load_default()

    async def _warm(self, models: DenoiserModels) -> None:
        """Steps in the queue's own threads."""
        config = models.config
        # A GPU chooses its kernels by size; a CPU would only take its time.
        side = min(config.sample_size, 8) if self.device.type == "cpu" else config.sample_size
        latents = torch.zeros(1, config.in_channels, side, side)
        shapes = {"prompt_embeds": (8, config.cross_attention_dim), **needed(config)}
        row = Conditioning(**{name: torch.zeros(1, *shape) for name, shape in shapes.items()})
        await self.queue.warm(models.unets.unet, self.device, latents, row)

    def open_models(self) -> list[Model]:
        return open_models(self.families.own.unets.unet, self.queue, self.settings)

    async def close(self) -> None:
        self.families.close()
        self.queue.close()
        self.gradients.close()

    async def GetDenoiserInfo(
        self, request: denoiser_pb2.GetDenoiserInfoRequest, context: Context
    ) -> denoiser_pb2.GetDenoiserInfoResponse:
        with self.families.use(request.family) as models:
            config, more = models.config, needed(models.config)
            return denoiser_pb2.GetDenoiserInfoResponse(
                family=request.family or self.families.default,
                in_channels=config.in_channels,
                out_channels=config.out_channels,
                sample_size=config.sample_size,
                cross_attention_dim=config.cross_attention_dim,
                max_latent_area=self.settings.max_latent_area,
                scheduler_config=models.scheduler_config,
                num_cross_attention_layers=models.unets.num_cross_attention_layers,
                adapters=models.adapters.names,
                weights_digest=models.weights_digest,
                engine=models.engine,
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
        with contextlib.ExitStack() as held:
            held.callback(kept.drop)
            async for request in request_iterator:
                kind = request.WhichOneof("message")
                if kind == "open" and opened is None:
                    # The family stays as long as the stream.
                    models = held.enter_context(self.families.use(request.open.family))
                    opened = await self._opened(request.open, models)
                elif kind == "step" and opened is not None:
                    yield await self._step(request.step, opened, kept)
                elif kind == "run" and opened is not None:
                    kept.drop()
                    yield await self._run(request.run, opened)
                elif kind == "gradient" and opened is not None:
                    yield await kept.gradient(request.gradient)
                elif kind == "edit" and opened is not None:
                    yield await self._edit(request.edit, opened)
                else:
                    raise InvalidArgument(
                        "message", "`open` once, then `step`s, `run`s or `edit`s", kind or "empty"
                    )

    async def _opened(self, request: denoiser_pb2.OpenTrajectory, models: DenoiserModels) -> Opened:
        unets = await models.adapters.get(request.adapter) if request.adapter else models.unets
        conditioning = conditioning_of(request, unets.unet.config, self.settings.max_rows)
        control = None
        if request.HasField("attention_control"):
            control = control_of(request.attention_control, conditioning.prompt_embeds.shape[1])
        return Opened(unets, conditioning, control)

    async def _step(
        self, request: denoiser_pb2.DenoiseStep, opened: Opened, kept: KeptStep
    ) -> denoiser_pb2.DenoiseResponse:
        latents = self._latents(request, "step", 1, opened.unets)
        unets, rows = opened.unets, selected(opened.conditioning, request.rows)
        kept.drop()
        if request.keep_graph:
            noise_pred = await kept.keep(unets.torch_unet, request.step, latents, request.timestep, rows)
        elif not request.attention_rows:
            noise_pred = await self.queue.noise_pred(unets.unet, latents, request.timestep, rows)
        if not request.attention_rows:
            return denoiser_pb2.DenoiseResponse(step=request.step, noise_pred=to_message(noise_pred))
        _check_attention("step.attention_rows", unets)
        places = places_of(request.rows or range(len(opened.conditioning)), request.attention_rows)
        seen, maps = await step_with_attention(
            self.queue, unets.unet, unets.attention, latents, request.timestep, rows, places
        )
        # A kept step's prediction is the one that will be differentiated.
        noise_pred = noise_pred if request.keep_graph else seen
        return denoiser_pb2.DenoiseResponse(
            step=request.step, noise_pred=to_message(noise_pred), attention=attention_messages(maps)
        )

    async def _run(self, request: denoiser_pb2.DenoiseRun, opened: Opened) -> denoiser_pb2.DenoiseResponse:
        unet, conditioning = opened.unets.unet, opened.conditioning
        run = run_of(request, unet.config, conditioning, self.settings.max_latent_area)
        result = await do_run(self.queue, unet, run, conditioning)
        return denoiser_pb2.DenoiseResponse(
            step=request.step, tensors=to_message(result.tensors), latents_digests=result.latents_digests
        )

    async def _edit(self, request: denoiser_pb2.EditStep, opened: Opened) -> denoiser_pb2.DenoiseResponse:
        latents = self._latents(request, "edit", 2, opened.unets)
        _check_attention("edit", opened.unets)
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
        self, request: denoiser_pb2.DenoiseStep | denoiser_pb2.EditStep, kind: str, count: int, unets: Unets
    ) -> torch.Tensor:
        """The step's latents [count, C, h, w]; its timestep is checked too."""
        channels = unets.unet.config.in_channels
        limit = count * channels * self.settings.max_latent_area
        latents = from_message(request.latents, f"{kind}.latents", (count, channels, None, None), limit)
        check_finite(latents, f"{kind}.latents")
        if not math.isfinite(request.timestep):
            raise InvalidArgument(f"{kind}.timestep", "finite", request.timestep)
        return latents


def _check_attention(field: str, unets: Unets) -> None:
    if not unets.num_cross_attention_layers:
        raise InvalidArgument(field, "left out: this UNet has no cross-attention", "given")
