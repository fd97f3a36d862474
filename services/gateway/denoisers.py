"""The stream of one trajectory over the denoiser replicas.

A trajectory's whole state is in the gateway, so a replica that dies costs one step, or one run of steps: the
stream is opened at another replica, the conditioning sent again, and the step repeated. The model is a
function of its inputs, so the image is the same.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import structlog
import torch
from prometheus_client import Counter, Histogram
from sfumato_protos.v1 import denoiser_pb2, tensor_pb2

from sfumato.common import calls
from sfumato.common.errors import DeadlineExceeded, Unavailable
from sfumato.common.linear_steps import LinearRun, RunResult
from sfumato.common.status import ForwardedError
from sfumato.common.tensors import from_message, to_message
from sfumato.gateway.alignment import AttentionControl
from sfumato.gateway.attention_maps import LayerMaps
from sfumato.gateway.conditioning import Conditioning
from sfumato.gateway.denoiser_attention import control_message, layer_maps
from sfumato.gateway.denoiser_runs import run_message, run_result
from sfumato.gateway.failures import is_lost, own_words
from sfumato.gateway.replicas import Replica, Replicas, pick, usable
from sfumato.gateway.stages import STEP_SECONDS

log = structlog.get_logger()

REPLAYED = Counter("sfumato_gateway_replayed_steps", "Steps repeated because a denoiser was lost.")
RUN_STEPS = Histogram(
    "sfumato_gateway_run_steps",
    "Steps that a denoiser was asked for in one message.",
    buckets=(1, 2, 4, 8, 16, 32),
)
RETRY_SECONDS = 0.1


class DenoiserStream:
    """One trajectory's stream; survives the loss of replicas."""

    def __init__(
        self,
        replicas: Replicas,
        conditioning: Conditioning,
        wait_seconds: float,
        step_seconds: float,
        control: AttentionControl | None = None,
        family: str = "",
    ) -> None:
        self.num_replayed_steps = 0
        self._replicas = replicas
        self._open = denoiser_pb2.OpenTrajectory(
            prompt_embeds=to_message(conditioning.prompt_embeds),
            attention_control=control_message(control) if control is not None else None,
            pooled_prompt_embeds=_optional(conditioning.pooled_prompt_embeds),
            time_ids=_optional(conditioning.time_ids),
            guidance_scale=conditioning.guidance_scale,
            adapter=conditioning.adapter,
            family=family,
        )
        self._num_rows = len(conditioning.prompt_embeds)
        self._wait_seconds = wait_seconds
        self._step_seconds = step_seconds
        self._replica: Replica | None = None
        self._call: Any = None
        # The last step whose graph is to be kept, and the call that keeps it.
        self._kept: denoiser_pb2.DenoiseRequest | None = None
        self._keeping_call: Any = None

    async def noise_pred(
        self,
        step: int,
        latents: torch.Tensor,
        timestep: float,
        *,
        rows: Sequence[int] = (),
        keep_graph: bool = False,
    ) -> torch.Tensor:
        """[rows, C, h, w]. Repeats the step elsewhere when the replica is lost.

        Args:
            rows: of the conditioning; none named: all.
            keep_graph: whether `gradient` may follow.

        Raises:
            Unavailable: no replica answered for wait_seconds, or within the deadline.
        """
        message = denoiser_pb2.DenoiseStep(
            step=step, latents=to_message(latents), timestep=timestep, rows=rows, keep_graph=keep_graph
        )
        response = await self._answer(denoiser_pb2.DenoiseRequest(step=message))
        return _noise_pred(response, len(rows) or self._num_rows, latents)

    async def run(self, step: int, run: LinearRun) -> RunResult:
        """Steps in a row; all of them again elsewhere when the replica is lost."""
        response = await self._answer(denoiser_pb2.DenoiseRequest(run=run_message(step, run)), len(run.steps))
        return run_result(response, run)

    async def gradient(self, step: int, noise_pred_gradient: torch.Tensor) -> torch.Tensor:
        """Sum over rows of gradient[row] . d noise_pred[row] / d latents of the step just done: [1, C, h, w].

        A replica that was lost in between is replaced by one that does the step again first.
        """
        message = denoiser_pb2.DenoiseGradient(step=step, noise_pred_gradient=to_message(noise_pred_gradient))
        response = await self._answer(denoiser_pb2.DenoiseRequest(gradient=message))
        shape = (1, *noise_pred_gradient.shape[1:])
        return from_message(response.latents_gradient, "latents_gradient", shape, noise_pred_gradient.numel())

    async def noise_pred_and_maps(
        self,
        step: int,
        latents: torch.Tensor,
        timestep: float,
        row: int,
        *,
        rows: Sequence[int] = (),
        keep_graph: bool = False,
    ) -> tuple[torch.Tensor, list[LayerMaps]]:
        """As noise_pred, and the cross-attention maps of one row, the largest resolution first."""
        message = denoiser_pb2.DenoiseStep(
            step=step,
            latents=to_message(latents),
            timestep=timestep,
            rows=rows,
            attention_rows=[row],
            keep_graph=keep_graph,
        )
        response = await self._answer(denoiser_pb2.DenoiseRequest(step=message))
        return _noise_pred(response, len(rows) or self._num_rows, latents), layer_maps(response, latents)[0]

    async def edit(
        self,
        step: int,
        latents: torch.Tensor,
        timestep: float,
        replace_cross: bool,
        replace_self: bool,
        attention: bool,
    ) -> tuple[torch.Tensor, list[list[LayerMaps]]]:
        """One step of an edit, as prompt_to_prompt.EditingDenoiser has it."""
        message = denoiser_pb2.EditStep(
            step=step, latents=to_message(latents), timestep=timestep, attention=attention,
            replace_cross_attention=replace_cross, replace_self_attention=replace_self,
        )  # fmt: skip
        response = await self._answer(denoiser_pb2.DenoiseRequest(edit=message))
        return _noise_pred(response, 4, latents), layer_maps(response, latents) if attention else []

    async def _answer(
        self, request: denoiser_pb2.DenoiseRequest, num_steps: int = 1
    ) -> denoiser_pb2.DenoiseResponse:
        """The answer to a step, or to several, from whichever replica lives."""
        RUN_STEPS.observe(num_steps)
        start = time.perf_counter()
        try:
            return await self._patiently(request, num_steps)
        finally:
            for _ in range(num_steps):
                STEP_SECONDS.observe((time.perf_counter() - start) / num_steps)

    async def _patiently(
        self, request: denoiser_pb2.DenoiseRequest, num_steps: int
    ) -> denoiser_pb2.DenoiseResponse:
        give_up = self._give_up_time()
        while True:
            try:
                # Not wait_for: before Python 3.12 it drops a cancellation that comes with the answer.
                async with asyncio.timeout(num_steps * self._step_seconds):
                    return await self._exchange(request)
            except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError) as error:
                self._lose(error)
                said = own_words(error)
            if time.monotonic() >= give_up:
                targets = ", ".join(self._replicas.targets)
                raise Unavailable(f"no denoiser answers ({targets}{said}); try again later")
            self.num_replayed_steps += num_steps
            REPLAYED.inc(num_steps)
            await asyncio.sleep(RETRY_SECONDS)

    async def _exchange(self, request: denoiser_pb2.DenoiseRequest) -> denoiser_pb2.DenoiseResponse:
        if self._call is None:
            if not self._replicas.current:
                raise asyncio.InvalidStateError("the DNS knows no denoiser")
            sound = usable(self._replicas.current, self._open.family)
            if not sound:
                family = self._open.family or "its own family"
                raise asyncio.InvalidStateError(f"no denoiser gives right canary steps with {family}")
            self._replica = pick(sound)
            self._replica.num_trajectories += 1
            self._call = self._replica.stub.Denoise(**calls.outgoing())
            await self._call.write(denoiser_pb2.DenoiseRequest(open=self._open))
        if request.HasField("gradient") and self._kept is not None and self._keeping_call is not self._call:
            await self._ask(self._kept)
        response = await self._ask(request)
        if request.step.keep_graph:
            self._kept, self._keeping_call = request, self._call
        return response

    async def _ask(self, request: denoiser_pb2.DenoiseRequest) -> denoiser_pb2.DenoiseResponse:
        await self._call.write(request)
        response = await self._call.read()
        if response is grpc.aio.EOF:
            raise asyncio.InvalidStateError(f"the denoiser ended the stream: {await self._call.code()}")
        answer: denoiser_pb2.DenoiseResponse = response
        return answer

    def _lose(self, error: Exception) -> None:
        """Lets go of the replica; raises what repeating cannot help."""
        replica = self._release()
        if isinstance(error, grpc.aio.AioRpcError) and not is_lost(error):
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceeded("the deadline passed during a step") from error
            raise ForwardedError(error) from error
        if replica is not None:
            replica.lost_at = time.monotonic()
            log.warning("denoiser lost", target=replica.target, error=str(error))

    def _release(self) -> Replica | None:
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.num_trajectories -= 1
        if self._call is not None:
            self._call.cancel()
            self._call = None
        return replica

    def _give_up_time(self) -> float:
        """When to stop looking for a replica: early enough that the client hears why."""
        remaining = calls.remaining_seconds()
        wait = self._wait_seconds if remaining is None else min(self._wait_seconds, 0.8 * remaining)
        return time.monotonic() + wait

    async def close(self) -> None:
        """Ends the stream; the replica drops the conditioning and what is queued."""
        self._release()


def _optional(tensor: torch.Tensor | None) -> tensor_pb2.Tensor | None:
    return None if tensor is None else to_message(tensor)


def _noise_pred(response: denoiser_pb2.DenoiseResponse, num_rows: int, latents: torch.Tensor) -> torch.Tensor:
    shape = (num_rows, None, *latents.shape[2:])
    return from_message(response.noise_pred, "noise_pred", shape, 16 * num_rows * latents.numel())
