"""The stream of one trajectory over the denoiser replicas.

A trajectory's whole state is in the gateway, so a replica that dies costs one step, or one run of steps: the
stream is opened at another replica, the conditioning sent again, and the step repeated. The model is a
function of its inputs, so the image is the same.
"""

from collections.abc import Sequence

import torch
from sfumato_protos.v1 import denoiser_pb2, tensor_pb2

from sfumato.common.linear_steps import LinearRun, RunResult
from sfumato.common.tensors import from_message, to_message
from sfumato.gateway.alignment import AttentionControl
from sfumato.gateway.attention_maps import LayerMaps
from sfumato.gateway.conditioning import Conditioning
from sfumato.gateway.denoiser_attention import control_message, layer_maps
from sfumato.gateway.denoiser_runs import run_message, run_result
from sfumato.gateway.replica_stream import ReplicaStream
from sfumato.gateway.replicas import Replicas


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
        opening = denoiser_pb2.OpenTrajectory(
            prompt_embeds=to_message(conditioning.prompt_embeds),
            attention_control=control_message(control) if control is not None else None,
            pooled_prompt_embeds=_optional(conditioning.pooled_prompt_embeds),
            time_ids=_optional(conditioning.time_ids),
            guidance_scale=conditioning.guidance_scale,
            adapter=conditioning.adapter,
            family=family,
        )
        self._num_rows = len(conditioning.prompt_embeds)
        self._stream = ReplicaStream(replicas, opening, wait_seconds, step_seconds)

    @property
    def num_replayed_steps(self) -> int:
        """Of all steps, those that were repeated."""
        return self._stream.num_replayed_steps

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
        response = await self._stream.answer(denoiser_pb2.DenoiseRequest(step=message))
        return _noise_pred(response, len(rows) or self._num_rows, latents)

    async def run(self, step: int, run: LinearRun) -> RunResult:
        """Steps in a row; all of them again elsewhere when the replica is lost."""
        response = await self._stream.answer(
            denoiser_pb2.DenoiseRequest(run=run_message(step, run)), len(run.steps)
        )
        return run_result(response, run)

    async def gradient(self, step: int, noise_pred_gradient: torch.Tensor) -> torch.Tensor:
        """Sum over rows of gradient[row] . d noise_pred[row] / d latents of the step just done: [1, C, h, w].

        A replica that was lost in between is replaced by one that does the step again first.
        """
        message = denoiser_pb2.DenoiseGradient(step=step, noise_pred_gradient=to_message(noise_pred_gradient))
        response = await self._stream.answer(denoiser_pb2.DenoiseRequest(gradient=message))
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
        response = await self._stream.answer(denoiser_pb2.DenoiseRequest(step=message))
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
        response = await self._stream.answer(denoiser_pb2.DenoiseRequest(edit=message))
        return _noise_pred(response, 4, latents), layer_maps(response, latents) if attention else []

    async def close(self) -> None:
        """Ends the stream."""
        self._stream.close()


def _optional(tensor: torch.Tensor | None) -> tensor_pb2.Tensor | None:
    return None if tensor is None else to_message(tensor)


def _noise_pred(response: denoiser_pb2.DenoiseResponse, num_rows: int, latents: torch.Tensor) -> torch.Tensor:
    shape = (num_rows, None, *latents.shape[2:])
    return from_message(response.noise_pred, "noise_pred", shape, 16 * num_rows * latents.numel())
