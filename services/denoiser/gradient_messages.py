"""The gradient messages of one Denoise stream: what it keeps, and the translation."""

import torch
from sfumato_protos.v1 import denoiser_pb2

from sfumato.common.errors import InvalidArgument
from sfumato.common.gradients import GraphCount, Linearised
from sfumato.common.tensors import check_finite, from_message, to_message
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.denoiser.gradients import GradientQueue


class KeptStep:
    """The last step of a stream that asked to keep its graph; at most one."""

    def __init__(self, queue: GradientQueue, graphs: GraphCount) -> None:
        self._queue = queue
        self._graphs = graphs
        self._rows: list[Linearised] = []
        self._num_counted = 0
        self._step = -1

    async def keep(
        self, unet: TorchUNet, step: int, latents: torch.Tensor, timestep: float, conditioning: Conditioning
    ) -> torch.Tensor:
        """The step's noise prediction [rows, C, h, w]; its graph takes the place of the one before."""
        self.drop()
        self._graphs.add(len(conditioning))
        self._num_counted = len(conditioning)
        self._rows = await self._queue.linearise(unet, latents, timestep, conditioning)
        self._step = step
        return torch.cat([row.output for row in self._rows])

    async def gradient(self, request: denoiser_pb2.DenoiseGradient) -> denoiser_pb2.DenoiseResponse:
        """The answer to `gradient`; the graph is gone after it.

        Raises:
            InvalidArgument: the step is not the one that is kept, or the tensor is wrong.
        """
        if not self._rows or request.step != self._step:
            kept = (
                f"{self._step}, the last step with `keep_graph`"
                if self._rows
                else "of a step with `keep_graph`"
            )
            raise InvalidArgument("gradient.step", kept, request.step)
        shape = (len(self._rows), *self._rows[0].graph.shape[1:])
        limit = len(self._rows) * self._rows[0].graph.numel()
        field = "gradient.noise_pred_gradient"
        vectors = from_message(request.noise_pred_gradient, field, shape, limit)
        check_finite(vectors, field)
        gradient = await self._queue.vjp(self._rows, vectors)
        self.drop()
        return denoiser_pb2.DenoiseResponse(step=request.step, latents_gradient=to_message(gradient))

    def drop(self) -> None:
        """Frees the graph."""
        self._rows = []
        self._graphs.remove(self._num_counted)
        self._num_counted = 0
