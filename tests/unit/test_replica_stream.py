"""The stream of one trajectory: what ends a request ends its step."""

import asyncio
from typing import Any

import pytest
from sfumato_protos.v1 import denoiser_pb2

from sfumato.gateway.replica_stream import ReplicaStream


@pytest.mark.parametrize("turns", range(4))
async def test_a_request_that_is_cancelled_as_an_answer_comes_does_not_go_on(
    monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """turns: of the loop between answer and cancellation. One that goes on waits for ever for a reader."""
    stream: Any = ReplicaStream(None, denoiser_pb2.OpenTrajectory(), 30.0, 30.0)  # type: ignore[arg-type]
    answers: list[asyncio.Future[denoiser_pb2.DenoiseResponse]] = []

    async def exchange(request: denoiser_pb2.DenoiseRequest) -> denoiser_pb2.DenoiseResponse:
        answers.append(asyncio.get_running_loop().create_future())
        return await answers[-1]

    monkeypatch.setattr(stream, "_exchange", exchange)

    async def image() -> None:
        while True:
            await stream.answer(denoiser_pb2.DenoiseRequest())

    running = asyncio.create_task(image())
    await asyncio.sleep(0.01)
    answers[0].set_result(denoiser_pb2.DenoiseResponse())
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=1)
    running.cancel()
    assert done
