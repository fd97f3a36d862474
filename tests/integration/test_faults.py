"""Processes that die: the image still comes, or the client hears why."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import psutil
import pytest

from sfumato_client import AsyncClient, SfumatoError
from sfumato_client.stack import Service, Stack, is_serving

REQUEST: dict[str, Any] = {"seed": 9, "num_inference_steps": 40, "scheduler": "euler_a"}


def bring_back(service: Service) -> None:
    """Starts a killed service again and waits until it serves."""
    service.process.wait()
    service.start()
    end = time.monotonic() + 60
    while not is_serving(service.target):
        assert time.monotonic() < end, service.last_lines()
        time.sleep(0.1)


async def test_a_denoiser_killed_in_the_middle_changes_nothing(client: AsyncClient, stack: Stack) -> None:
    undisturbed = await client.generate("a fox", **REQUEST)
    killed: Service | None = None
    replayed, image = 0, b""
    async for event in client.generate_events("a fox", request_id="killed", **REQUEST):
        if event.HasField("step") and event.step.step == 10 and killed is None:
            killed = busiest(stack.denoisers)
            killed.process.kill()
        if event.HasField("image"):
            image = event.image.data
        if event.HasField("done"):
            replayed = event.done.timings.num_replayed_steps
    assert killed is not None
    bring_back(killed)
    assert replayed >= 1
    assert image == undisturbed.images[0].data


def busiest(services: Sequence[Service]) -> Service:
    """The one at work: its processor time grows most."""

    def seconds(service: Service) -> float:
        return sum(psutil.Process(service.process.pid).cpu_times()[:2])

    before = [seconds(service) for service in services]
    time.sleep(0.3)
    return max(zip(services, before, strict=True), key=lambda pair: seconds(pair[0]) - pair[1])[0]


async def test_without_any_denoiser_the_client_hears_it_in_time_and_service_resumes(stack: Stack) -> None:
    async with AsyncClient(stack.target, timeout=20) as client:
        for service in stack.denoisers:
            service.process.kill()
        start = time.monotonic()
        with pytest.raises(SfumatoError) as error:
            await client.generate("a cat", num_inference_steps=4)
        assert error.value.code == "UNAVAILABLE"
        assert "no denoiser answers" in error.value.message
        assert time.monotonic() - start < 15
        await asyncio.gather(*(asyncio.to_thread(bring_back, service) for service in stack.denoisers))
        assert (await client.generate("a cat", num_inference_steps=4)).images


async def test_without_a_decoder_the_error_names_it(stack: Stack) -> None:
    stack.decoder.process.kill()
    async with AsyncClient(stack.target, timeout=20) as client:
        with pytest.raises(SfumatoError) as error:
            await client.generate("a cat", num_inference_steps=2)
        assert error.value.code == "UNAVAILABLE"
        assert "decoder" in error.value.message
        await asyncio.to_thread(bring_back, stack.decoder)
        assert (await client.generate("a cat", num_inference_steps=2)).images
