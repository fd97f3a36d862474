"""A denoising stream over the replicas: a message is answered by whichever of them lives."""

import asyncio
import time
from typing import Any

import grpc
import structlog
from prometheus_client import Counter, Histogram
from sfumato_protos.v1 import denoiser_pb2

from sfumato.common import calls
from sfumato.common.errors import DeadlineExceeded, Unavailable
from sfumato.common.status import ForwardedError
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


class ReplicaStream:
    """Opened at one replica at a time."""

    def __init__(
        self,
        replicas: Replicas,
        opening: denoiser_pb2.OpenTrajectory,
        wait_seconds: float,
        step_seconds: float,
    ) -> None:
        """
        Args:
            replicas: to choose from.
            opening: sent first at each.
            wait_seconds: how long to look for one that answers.
            step_seconds: how long a step may take before its replica counts as lost.
        """
        self.num_replayed_steps = 0
        self._replicas, self._open = replicas, opening
        self._wait_seconds, self._step_seconds = wait_seconds, step_seconds
        self._replica: Replica | None = None
        self._call: Any = None
        # The last step whose graph is to be kept, and the call that keeps it.
        self._kept: denoiser_pb2.DenoiseRequest | None = None
        self._keeping_call: Any = None

    async def answer(
        self, request: denoiser_pb2.DenoiseRequest, num_steps: int = 1
    ) -> denoiser_pb2.DenoiseResponse:
        """The answer to a step, or to several; asked for again elsewhere when the replica is lost.

        Raises:
            Unavailable: no replica answered for wait_seconds, or within the deadline.
        """
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

    def close(self) -> None:
        """The replica drops the conditioning and what is queued."""
        self._release()
