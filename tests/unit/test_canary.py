"""Denoisers that give other bits than they should get no trajectories, until they give the right ones."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import torch
from sfumato_protos.v1 import denoiser_pb2, denoiser_pb2_grpc

from sfumato.common.errors import Unavailable
from sfumato.common.tensors import from_message, to_message
from sfumato.gateway.canary import Canary
from sfumato.gateway.conditioning import Conditioning
from sfumato.gateway.denoisers import DenoiserStream
from sfumato.gateway.replicas import Held, Replicas


class Denoiser(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Multiplies the latents; its factor may go wrong."""

    def __init__(self, weights: str = "w", engine: str = "e") -> None:
        self.weights, self.engine, self.factor, self.num_steps = weights, engine, 2.0, 0
        self.seconds = 0.0  # that a step takes

    async def GetDenoiserInfo(self, request: Any, context: Any) -> denoiser_pb2.GetDenoiserInfoResponse:
        return denoiser_pb2.GetDenoiserInfoResponse(
            in_channels=4, sample_size=8, cross_attention_dim=16, weights_digest=self.weights,
            engine=self.engine,
        )  # fmt: skip

    async def Denoise(
        self, request_iterator: AsyncIterator[denoiser_pb2.DenoiseRequest], context: Any
    ) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        async for request in request_iterator:
            if request.HasField("step"):
                self.num_steps += 1
                await asyncio.sleep(self.seconds)
                latents = from_message(request.step.latents, "latents", (1, 4, None, None), 2**20)
                yield denoiser_pb2.DenoiseResponse(noise_pred=to_message(latents * self.factor))


@asynccontextmanager
async def serving(*denoisers: Denoiser) -> AsyncIterator[tuple[Canary, Replicas]]:
    servers, targets = [], []
    for denoiser in denoisers:
        server = grpc.aio.server()
        denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server(denoiser, server)
        targets.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    replicas = Replicas(",".join(targets), lambda target, _: grpc.aio.insecure_channel(target), 3600)
    yield Canary(replicas, 0.0), replicas
    await replicas.close()
    for server in servers:
        await server.stop(None)


def stream(replicas: Replicas) -> DenoiserStream:
    return DenoiserStream(replicas, Conditioning(torch.zeros(1, 8, 16)), 0.3, 5.0)


async def test_one_that_goes_wrong_is_taken_out_and_comes_back_when_it_is_right() -> None:
    right, wrong = Denoiser(), Denoiser()
    async with serving(right, wrong) as (canary, replicas):
        await canary.look()
        assert [replica.own.sound for replica in replicas.current] == [True, True]
        wrong.factor = 2.0001
        await canary.look()
        assert [replica.own.sound for replica in replicas.current] == [True, False]
        assert not canary.all_unsound
        before = wrong.num_steps
        for _ in range(3):
            opened = stream(replicas)
            assert float((await opened.noise_pred(0, torch.ones(1, 4, 8, 8), 1.0)).max()) == 2.0
            await opened.close()
        assert wrong.num_steps == before
        wrong.factor = 2.0
        await canary.look()
        assert [replica.own.sound for replica in replicas.current] == [True, True]


async def test_with_all_of_them_wrong_the_gateway_says_that_it_is_not_ready() -> None:
    only = Denoiser()
    async with serving(only) as (canary, replicas):
        await canary.look()
        only.factor = 3.0
        await canary.look()
        assert canary.all_unsound
        opened = stream(replicas)
        try:
            await opened.noise_pred(0, torch.ones(1, 4, 8, 8), 1.0)
            raise AssertionError("it was asked")
        except Unavailable:
            pass


async def test_other_weights_may_give_other_bits() -> None:
    one, other = Denoiser("w1"), Denoiser("w2")
    other.factor = 5.0
    async with serving(one, other) as (canary, replicas):
        await canary.look()
        assert [replica.own.sound for replica in replicas.current] == [True, True]
        assert [replica.own.weights_digest for replica in replicas.current] == ["w1", "w2"]


async def test_one_that_promises_no_bits_is_not_judged() -> None:
    denoiser = Denoiser(engine="")
    async with serving(denoiser) as (canary, replicas):
        await canary.look()
        denoiser.factor = 3.0
        await canary.look()
        assert [replica.own.sound for replica in replicas.current] == [True]
        assert denoiser.num_steps == 2


async def test_one_that_is_busy_or_silent_is_not_judged() -> None:
    busy, silent = Denoiser(), Denoiser()
    async with serving(busy, silent) as (canary, replicas):
        await canary.look()
        steps = busy.num_steps
        replicas.current[0].num_trajectories = 1
        busy.factor = 3.0
        await replicas.current[1].channel.close()
        replicas.current[1].channel = grpc.aio.insecure_channel("127.0.0.1:1")
        replicas.current[1].stub = denoiser_pb2_grpc.DenoiserServiceStub(replicas.current[1].channel)
        await asyncio.wait_for(canary.look(), 30)
        assert busy.num_steps == steps
        assert [replica.own.sound for replica in replicas.current] == [True, True]


async def test_a_family_that_a_busy_denoiser_never_answered_with_is_looked_at() -> None:
    busy = Denoiser()
    async with serving(busy) as (canary, replicas):
        (replica,) = replicas.current
        await canary.look()
        replica.num_trajectories = 1
        replica.families["families/new"] = held = Held()
        steps = busy.num_steps
        await canary.look()
        await canary.look()
        assert (held.weights_digest, held.engine, held.sound) == ("w", "e", True)
        assert busy.num_steps == steps + 1


async def test_bits_seen_beside_other_rows_are_expected_of_nobody() -> None:
    one, other = Denoiser(), Denoiser()
    async with serving(one, other) as (canary, replicas):
        busy = replicas.current[0]
        one.factor, busy.num_trajectories = 2.0001, 1
        await canary.look()
        assert [replica.own.sound for replica in replicas.current] == [True, True]
        one.factor, busy.num_trajectories = 2.0, 0
        await canary.look()
        assert [replica.own.sound for replica in replicas.current] == [True, True]
        one.factor = 2.0001
        await canary.look()
        assert [replica.own.sound for replica in replicas.current] == [False, True]


async def test_a_family_that_leaves_as_it_is_looked_at_ends_no_look() -> None:
    denoiser = Denoiser()
    async with serving(denoiser) as (canary, replicas):
        replicas.current[0].families["families/gone"] = Held()
        looking = asyncio.create_task(canary.look())
        await asyncio.sleep(0)
        del replicas.current[0].families["families/gone"]
        await looking
        assert replicas.current[0].own.weights_digest == "w"


async def test_two_looks_at_a_time_do_not_step_beside_each_other() -> None:
    denoiser = Denoiser()
    denoiser.seconds = 0.1
    async with serving(denoiser) as (_, replicas):
        canary = Canary(replicas, 60.0)
        await asyncio.gather(canary.look(), canary.look())
        assert denoiser.num_steps == 1
        assert replicas.current[0].own.weights_digest == "w"
