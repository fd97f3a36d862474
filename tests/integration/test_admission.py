"""Requests that find no place, or no time: they wait, hear at once why not, or get what there is."""

import asyncio
import io
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato_client import AsyncClient, SfumatoError
from sfumato_client.stack import Stack, is_serving, local_stack
from tests.tiny_family import save_tiny_family

LONG: dict[str, Any] = {"num_inference_steps": 400, "scheduler": "ddim"}  # 800 row-steps


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All services with the tiny family; one image at a time, 1,000 row-steps may wait."""
    folder = tmp_path_factory.mktemp("narrow")
    settings = {
        "SFUMATO_GATEWAY_MAX_CONCURRENT_IMAGES": "1",
        "SFUMATO_GATEWAY_MAX_QUEUED_ROW_STEPS": "1000",
    }
    for name in ("ENCODER", "DECODER", "DENOISER"):
        settings |= {f"SFUMATO_{name}_ENGINE": "torch", f"SFUMATO_{name}_NUM_THREADS": "1"}
    family = save_tiny_family(folder / "tiny")
    with local_stack(family, log_dir=folder, metrics=True, settings=settings) as running:
        yield running


@pytest.fixture
async def narrow_client(narrow: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(narrow.target, timeout=120) as opened:
        yield opened


async def started(client: AsyncClient, steps: int = 1) -> Any:
    """A long request of which so many steps are done; close it to end it."""
    events = client.generate_events("a cat", **LONG)
    async for event in events:
        if event.HasField("step") and event.step.step == steps:
            return events
    raise AssertionError("it ended")


async def queued(stack: Stack, row_steps: int) -> None:
    """Returns when so many row-steps wait for a place."""
    url = f"http://127.0.0.1:{stack.gateway.metrics_port}/metrics"
    while True:
        metrics = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        if f"sfumato_gateway_queued_row_steps {float(row_steps)}" in metrics.splitlines():
            return
        await asyncio.sleep(0.01)


async def test_a_request_without_a_place_waits_for_it(narrow: Stack, narrow_client: AsyncClient) -> None:
    running = await started(narrow_client)
    waiting = asyncio.create_task(narrow_client.generate("a dog", num_inference_steps=2))
    await queued(narrow, 4)
    assert not waiting.done()
    await running.aclose()
    assert (await waiting).images


async def test_the_larger_priority_starts_first(narrow: Stack, narrow_client: AsyncClient) -> None:
    running = await started(narrow_client)
    order: list[int] = []

    async def run(priority: int) -> None:
        await narrow_client.generate("a dog", num_inference_steps=2, priority=priority)
        order.append(priority)

    tasks = []
    for priority in (0, 5):
        tasks.append(asyncio.create_task(run(priority)))
        await queued(narrow, 4 * len(tasks))
    await running.aclose()
    await asyncio.gather(*tasks)
    assert order == [5, 0]


async def test_a_full_queue_is_said_at_once_with_when_to_try_again(
    narrow: Stack, narrow_client: AsyncClient
) -> None:
    """While the denoiser works and another request waits."""
    running = await started(narrow_client)
    waiting = asyncio.create_task(narrow_client.generate("a dog", **LONG))
    await queued(narrow, 800)
    seconds, nothing_to_do = [], []
    for _ in range(20):
        start = time.perf_counter()
        with pytest.raises(SfumatoError, match="priority"):
            await narrow_client.generate("a fox", priority=10)
        nothing_to_do.append(time.perf_counter() - start)
        start = time.perf_counter()
        with pytest.raises(SfumatoError) as error:
            await narrow_client.generate("a fox", **LONG)
        seconds.append(time.perf_counter() - start)
        assert (error.value.code, error.value.field) == ("RESOURCE_EXHAUSTED", "row_steps")
        assert error.value.retry_seconds is not None
        assert error.value.retry_seconds > 0
    assert "at most 1000 waiting" in error.value.message
    assert "800 more, with 800 waiting" in error.value.message
    assert is_serving(narrow.target)  # busy is not ill
    # Beside an answer that waits for nothing, and of several: the machine may be busy with other tests.
    assert sorted(seconds)[5] - sorted(nothing_to_do)[5] < 0.05
    waiting.cancel()
    await running.aclose()
    assert (await narrow_client.generate("a cat", num_inference_steps=1)).images


async def test_a_priority_out_of_range_is_refused(narrow_client: AsyncClient) -> None:
    with pytest.raises(SfumatoError) as error:
        await narrow_client.generate("a cat", priority=10)
    assert (error.value.code, error.value.field) == ("INVALID_ARGUMENT", "priority")


async def test_a_deadline_that_cannot_be_met_is_refused_before_it_comes(
    narrow: Stack, narrow_client: AsyncClient
) -> None:
    await narrow_client.generate("a cat", num_inference_steps=5, scheduler="ddim")  # measures a step
    async with AsyncClient(narrow.target, timeout=0.3) as hasty:
        with pytest.raises(SfumatoError) as error:
            await hasty.generate("a cat", num_inference_steps=900, scheduler="ddim")
    assert (error.value.code, error.value.field) == ("DEADLINE_EXCEEDED", "deadline")
    assert "900 steps of" in error.value.message
    assert "set allow_partial" in error.value.message


async def test_edits_and_comparisons_that_take_too_long_are_refused_at_once(
    tiny_stack: Stack,
) -> None:
    settings: Any = {"none": {"guidance": "none"}, "cfg": {}}
    few: Any = {"num_inference_steps": 5}
    async with AsyncClient(tiny_stack.target, timeout=120) as client:
        await client.edit_prompt("a cat", "a dog", **few)
        await client.compare("a cat", settings, scheduler="ddim", **few)
    async with AsyncClient(tiny_stack.target, timeout=0.4) as hasty:
        for call in (
            hasty.edit_prompt("a cat", "a dog", num_inference_steps=900),
            hasty.compare("a cat", settings, num_inference_steps=900, scheduler="ddim"),
        ):
            with pytest.raises(SfumatoError) as error:
                await call
            assert (error.value.code, error.value.field) == ("DEADLINE_EXCEEDED", "deadline")
            assert "900 steps of" in error.value.message


async def test_each_setting_of_a_comparison_has_its_share_of_the_time(narrow: Stack) -> None:
    settings: Any = {"first": {}, "second": {}}
    async with AsyncClient(narrow.target, timeout=4.0) as hasty:
        result = await hasty.compare(
            "a cat", settings, num_inference_steps=900, scheduler="ddim", seed=5, allow_partial=True
        )
    for generation in result.generations.values():
        assert generation.images[0].partial
        assert generation.images[0].step >= 1


async def test_at_the_deadline_the_predicted_image_comes_if_it_is_asked_for(
    narrow: Stack, narrow_client: AsyncClient
) -> None:
    options: Any = {"num_inference_steps": 900, "scheduler": "ddim", "seed": 5}
    await narrow_client.generate("a cat", num_inference_steps=5)
    async with AsyncClient(narrow.target, timeout=3.0) as hasty:
        result = await hasty.generate("a cat", allow_partial=True, **options)
    image = result.images[0]
    assert image.partial
    assert image.num_steps == 900
    assert 1 <= image.step < 900
    options |= {"preview_interval_steps": image.step, "preview_kind": "decoded"}
    events = narrow_client.generate_events("a cat", **options)
    async for event in events:
        if event.step.preview:
            assert event.step.preview == image.data
            break
    await events.aclose()


async def test_a_prompt_edit_gives_both_images_as_far_as_they_came(tiny_stack: Stack) -> None:
    options: Any = {"num_inference_steps": 900, "seed": 5}
    async with AsyncClient(tiny_stack.target, timeout=3.0) as hasty:
        result = await hasty.edit_prompt("a cat", "a dog", allow_partial=True, **options)
    source, target = result.images
    for image in result.images:
        assert image.partial
        assert image.num_steps == 900
        assert 1 <= image.step < 900
    assert (source.index, target.index, source.step) == (0, 1, target.step)
    assert source.data != target.data
    # The source is what a generation is at that step.
    options |= {"scheduler": "ddim", "guidance_scale": 5.0}
    options |= {"preview_interval_steps": source.step, "preview_kind": "decoded"}
    async with AsyncClient(tiny_stack.target, timeout=120) as client:
        events = client.generate_events("a cat", **options)
        preview = await anext(event.step.preview async for event in events if event.step.preview)
        await events.aclose()  # type: ignore[attr-defined]
    found, made = (np.asarray(Image.open(io.BytesIO(data)), np.int16) for data in (source.data, preview))
    assert np.abs(found - made).max() <= 1


async def test_an_edit_whose_image_is_not_inverted_in_time_has_nothing_to_show(tiny_stack: Stack) -> None:
    async with AsyncClient(tiny_stack.target, timeout=120) as client:
        image = (await client.generate("a cat", num_inference_steps=2, seed=5)).images[0].data
    async with AsyncClient(tiny_stack.target, timeout=2.0) as hasty:
        with pytest.raises(SfumatoError, match="no time for the first step of the edit") as error:
            await hasty.edit_prompt(
                "a cat", "a dog", image=image, num_inference_steps=900, allow_partial=True
            )
    assert error.value.code == "DEADLINE_EXCEEDED"


async def test_a_request_that_ends_in_time_is_whole_also_with_partial_allowed(
    narrow_client: AsyncClient,
) -> None:
    options: Any = {"num_inference_steps": 6, "seed": 5}
    whole = await narrow_client.generate("a cat", **options)
    allowed = await narrow_client.generate("a cat", allow_partial=True, **options)
    assert not allowed.images[0].partial
    assert allowed.images[0].step == 6
    assert allowed.images[0].data == whole.images[0].data
