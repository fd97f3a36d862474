"""A step of a fixed input at each denoiser that is idle: the same weights and engine must give the same bits.

A denoiser that gives others (a broken device, weights damaged in memory) gets no more trajectories until it
gives them again. One that is busy is asked only with a family that it never answered with, as one that was
just loaded; where its bits are not the expected ones, it is judged when it is idle. One that does not answer,
or tells no engine (Triton), is not judged.
"""

import asyncio
import hashlib
import time
from typing import Any

import grpc
import structlog
import torch
from prometheus_client import Counter
from sfumato_protos.v1 import denoiser_pb2

from sfumato.common.tensors import to_message
from sfumato.gateway.replicas import Held, Replica, Replicas

log = structlog.get_logger()

STEPS = Counter("sfumato_gateway_canary_steps", "Canary steps at denoisers, by result.", ["result"])
TIMEOUT_SECONDS = 20.0
LOOK_SECONDS = 1.0
TRIES = 3  # a step that shared its forward with another gateway's may differ in its last bits
NUM_TOKENS = 8
MAX_SIDE = 8  # of its latents: a UNet of full size on a CPU takes minutes for a step of its own size


class Canary:
    """Looks after the denoisers of one gateway replica."""

    def __init__(self, replicas: Replicas, interval_seconds: float) -> None:
        """interval_seconds: how often one that is idle is looked at; a lost one is as soon as it is back."""
        self._replicas, self._interval = replicas, interval_seconds
        self._expected: dict[tuple[str, str], str] = {}  # by weights and engine

    @property
    def all_unsound(self) -> bool:
        """Whether there are denoisers and none gives the right bits, with its own family."""
        current = self._replicas.current
        return bool(current) and not any(replica.own.sound for replica in current)

    async def follow(self) -> None:
        """Looks, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """One step at each denoiser that is due, with each family that is."""
        await asyncio.gather(
            *(
                self._look_at(replica, family, held)
                for replica in self._replicas.current
                for family, held in replica.families.items()
            )
        )

    async def _look_at(self, replica: Replica, family: str, held: Held) -> None:
        async with held.looking:  # two looks at a time would step beside each other
            if self._is_due(replica, held):
                await self._check(replica, family, held)

    def _is_due(self, replica: Replica, held: Held) -> bool:
        if not held.weights_digest:  # it never answered, and a family is served when one does
            return True
        is_old = time.monotonic() - held.looked_at > self._interval or replica.lost_at > held.looked_at
        return not replica.num_trajectories and (is_old or not held.sound)

    async def _check(self, replica: Replica, family: str, held: Held) -> None:
        """Judges the denoiser by its step."""
        for _ in range(TRIES):
            begun = time.monotonic()
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    info, found = await _step(replica, family)
            except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError):
                STEPS.labels("unanswered").inc()
                return
            held.weights_digest, held.engine = info.weights_digest, info.engine
            key = info.weights_digest, info.engine
            if info.engine and replica.num_trajectories and self._expected.get(key) != found:
                STEPS.labels("unjudged").inc()  # it is at work, and may have stepped beside other rows
                return
            held.looked_at = begun
            if not info.engine:
                STEPS.labels("unjudged").inc()
                held.sound = True
                return
            expected = self._expected.setdefault(key, found)
            if found == expected:
                STEPS.labels("same").inc()
                if not held.sound:
                    log.info("denoiser is right again", target=replica.target, family=family)
                held.sound = True
                return
        STEPS.labels("other").inc()
        if held.sound:
            log.error(
                "denoiser taken out: its canary step gives other bits than it should",
                target=replica.target, family=family, weights=info.weights_digest, engine=info.engine,
                expected=expected, found=found,
            )  # fmt: skip
        held.sound = False


async def _step(replica: Replica, family: str) -> tuple[denoiser_pb2.GetDenoiserInfoResponse, str]:
    """What the denoiser holds, and the digest of its prediction."""
    info = await replica.stub.GetDenoiserInfo(denoiser_pb2.GetDenoiserInfoRequest(family=family))
    call: Any = replica.stub.Denoise()
    try:
        await call.write(denoiser_pb2.DenoiseRequest(open=_opening(info, family)))
        side = min(info.sample_size, MAX_SIDE)
        shape = (1, info.in_channels, side, side)
        step = denoiser_pb2.DenoiseStep(latents=to_message(_fixed(*shape)), timestep=500.0)
        await call.write(denoiser_pb2.DenoiseRequest(step=step))
        response = await call.read()
    finally:
        call.cancel()
    if response is grpc.aio.EOF:
        raise asyncio.InvalidStateError("the denoiser ended the stream")
    return info, hashlib.blake2b(response.noise_pred.data, digest_size=16).hexdigest()


def _opening(info: denoiser_pb2.GetDenoiserInfoResponse, family: str) -> denoiser_pb2.OpenTrajectory:
    """One row of conditioning, of the kind that the UNet takes."""
    opening = denoiser_pb2.OpenTrajectory(
        prompt_embeds=to_message(_fixed(1, NUM_TOKENS, info.cross_attention_dim)),
        guidance_scale=1.0 if info.guidance_embedded else 0.0,
        family=family,
    )
    if info.pooled_size:
        opening.pooled_prompt_embeds.CopyFrom(to_message(_fixed(1, info.pooled_size)))
    if info.num_time_ids:
        opening.time_ids.CopyFrom(to_message(torch.full((1, info.num_time_ids), 8.0 * info.sample_size)))
    return opening


def _fixed(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
