"""The life of a request: events, reproducibility, refusals, cancelling."""

import asyncio
import hashlib
import io
import json
import math
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from PIL import Image
from sfumato_protos.v1 import denoiser_pb2, denoiser_pb2_grpc, gateway_pb2, gateway_pb2_grpc, tensor_pb2

from sfumato_client import AsyncClient, SfumatoError
from sfumato_client.stack import Stack, is_serving


def log_lines(path: Path, **wanted: Any) -> list[dict[str, Any]]:
    """The JSON lines of a service's log with these values."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


async def until(condition: Any, seconds: float = 10.0) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        await asyncio.sleep(0.05)
    return False


async def test_events_come_in_order_with_everything_resolved(client: AsyncClient) -> None:
    events = [
        event
        async for event in client.generate_events("a cat", num_inference_steps=6, preview_interval_steps=3)
    ]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["accepted", *["step"] * 6, "image", "done"]
    parameters = events[0].accepted.parameters
    assert parameters.HasField("seed")
    assert parameters.scheduler == gateway_pb2.SCHEDULER_DPMPP_2M
    previews = [event.step.preview for event in events[1:7]]
    assert [bool(preview) for preview in previews] == [False, False, True] * 2
    assert Image.open(io.BytesIO(previews[5])).size == (64, 64)
    assert events[-1].done.timings.total_seconds > events[-1].done.timings.denoise_seconds > 0


@pytest.mark.parametrize(
    ("asked", "steps"),
    [({}, [1, 2, 3, 4, 5, 6]), ({"progress_interval_steps": 4}, [4, 6]), ({"progress_interval_steps": 0}, []),
     ({"progress_interval_steps": 0, "preview_interval_steps": 3}, [3, 6])],
)  # fmt: skip
async def test_a_client_hears_of_the_steps_that_it_asks_for(
    client: AsyncClient, asked: Any, steps: list[int]
) -> None:
    events = [event async for event in client.generate_events("a cat", num_inference_steps=6, **asked)]
    assert [event.step.step for event in events if event.HasField("step")] == steps
    assert [event.HasField("image") for event in events[-2:]] == [True, False]


async def test_an_edits_client_hears_of_the_steps_that_it_asks_for(client: AsyncClient) -> None:
    options: Any = {"num_inference_steps": 6, "progress_interval_steps": 4}
    events = [event async for event in client.edit_prompt_events("a cat", "a dog", **options)]
    assert [event.step.step for event in events if event.HasField("step")] == [4, 6]


async def test_previews_are_about_what_the_decoder_makes_of_the_same_latents(client: AsyncClient) -> None:
    async def previews(kind: str) -> list[np.ndarray]:
        options: Any = {"num_inference_steps": 6, "seed": 3, "preview_interval_steps": 1}
        events = client.generate_events("a cat on a blue background", preview_kind=kind, **options)
        files = [event.step.preview async for event in events if event.HasField("step")]
        return [np.asarray(Image.open(io.BytesIO(data)), dtype=float) for data in files]

    projected, decoded = await previews("projected"), await previews("decoded")
    for ours, theirs in zip(projected, decoded, strict=True):
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.85
        assert not np.array_equal(ours, theirs)


async def test_an_unknown_kind_of_preview_is_refused(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.target) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        request = gateway_pb2.GenerateRequest(prompt="a cat", preview_kind=9)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            [event async for event in stub.Generate(request)]
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "preview_kind must be one of projected, decoded, but is 9" in (error.value.details() or "")


async def test_the_resolved_parameters_sent_again_give_the_same_image(
    client: AsyncClient, stack: Stack
) -> None:
    first = await client.generate("a dog", num_inference_steps=5)
    async with grpc.aio.insecure_channel(stack.target) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        events = [event async for event in stub.Generate(first.parameters)]
    assert next(e.image.data for e in events if e.HasField("image")) == first.images[0].data


async def test_one_request_among_many_always_gives_one_image(client: AsyncClient) -> None:
    """Twenty times the same request, eight at a time, with other requests beside them."""
    limit = asyncio.Semaphore(8)

    async def hash_of(prompt: str, **options: Any) -> str:
        async with limit:
            result = await client.generate(prompt, **options)
        return hashlib.sha256(result.images[0].data).hexdigest()

    same = [hash_of("a cat", seed=3, num_inference_steps=8, scheduler="euler_a") for _ in range(20)]
    others = [hash_of(f"a dog {i}", num_inference_steps=4 + i, guidance_scale=1.0 + i) for i in range(6)]
    hashes = await asyncio.gather(*same, *others)
    assert len(set(hashes[:20])) == 1
    assert len(set(hashes[20:])) == 6


async def test_a_prompt_that_is_cut_is_reported(client: AsyncClient) -> None:
    result = await client.generate("cat dog fox " * 40, num_inference_steps=1)
    assert any("tokens beyond" in warning for warning in result.warnings)


def truncated_png() -> bytes:
    """A PNG without its end."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "PNG")
    return buffer.getvalue()[:-200]


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": "x" * 10_000}),
        ("num_inference_steps", {"num_inference_steps": 0}),
        ("num_inference_steps", {"num_inference_steps": 10_000}),
        ("width", {"width": 63}),
        ("width x height", {"width": 4096, "height": 4096}),
        ("scheduler", {"scheduler": 99}),
        ("guidance_scale", {"guidance_scale": math.nan}),
        ("image", {"image": truncated_png()}),
        ("image", {"image": b"not an image"}),
        ("mask", {"image": truncated_png(), "mask": b"no"}),
        ("strength", {"strength": 0.5}),
        ("request_id", {"request_id": "a b"}),
        ("num_images", {"num_images": 1000}),
        ("seed", {"seed": -1}),
        ("image_format", {"image_format": 42}),
    ],
)
async def test_bad_input_names_field_limit_and_value(
    stack: Stack, field: str, options: dict[str, Any]
) -> None:
    request = gateway_pb2.GenerateRequest(**{"prompt": "a cat", **options})
    error = await refused(stack, request)
    assert (error.code, error.field) == ("INVALID_ARGUMENT", field)
    assert error.limit
    assert error.value
    assert all(is_serving(service.target) for service in stack.services)


async def refused(stack: Stack, request: gateway_pb2.GenerateRequest) -> SfumatoError:
    """The error of a request that must fail."""
    from sfumato_client.errors import from_rpc_error

    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(stack.target, options) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            [event async for event in stub.Generate(request, timeout=30)]
    return from_rpc_error(error.value)


async def test_an_oversized_message_says_the_limit(stack: Stack) -> None:
    error = await refused(stack, gateway_pb2.GenerateRequest(prompt="a", image=b"\0" * (20 * 2**20)))
    assert error.code == "RESOURCE_EXHAUSTED"
    assert str(16 * 2**20) in error.message


async def test_refusals_do_not_grow_the_gateway(stack: Stack) -> None:
    process = psutil.Process(stack.gateway.process.pid)
    request = gateway_pb2.GenerateRequest(prompt="a", image=truncated_png(), num_inference_steps=20_000)
    for _ in range(20):
        await refused(stack, request)
    before = process.memory_info().rss
    for _ in range(200):
        await refused(stack, request)
    assert process.memory_info().rss - before < 8 * 2**20


@pytest.mark.parametrize(
    ("field", "tensor"),
    [
        ("open.prompt_embeds.shape", tensor_pb2.Tensor(dtype=1, shape=[2, 2**40, 7], data=b"")),
        ("open.prompt_embeds.dtype", tensor_pb2.Tensor(dtype=77, shape=[1, 1, 1], data=b"0000")),
    ],
)
async def test_a_denoiser_refuses_a_malformed_tensor(
    stack: Stack, field: str, tensor: tensor_pb2.Tensor
) -> None:
    async with grpc.aio.insecure_channel(stack.denoisers[0].target) as channel:
        stub: Any = denoiser_pb2_grpc.DenoiserServiceStub(channel)
        call = stub.Denoise()
        opened = denoiser_pb2.OpenTrajectory(prompt_embeds=tensor)
        await call.write(denoiser_pb2.DenoiseRequest(open=opened))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (error.value.details() or "")


async def test_a_tensor_whose_bytes_do_not_match_is_refused(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.denoisers[0].target) as channel:
        stub: Any = denoiser_pb2_grpc.DenoiserServiceStub(channel)
        info = await stub.GetDenoiserInfo(denoiser_pb2.GetDenoiserInfoRequest())
        tensor = tensor_pb2.Tensor(dtype=1, shape=[1, 4, info.cross_attention_dim], data=b"\0" * 12)
        call = stub.Denoise()
        opened = denoiser_pb2.OpenTrajectory(prompt_embeds=tensor)
        await call.write(denoiser_pb2.DenoiseRequest(open=opened))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{4 * 4 * info.cross_attention_dim} bytes" in (error.value.details() or "")


async def test_cancelling_frees_the_denoiser_at_the_next_step(client: AsyncClient, stack: Stack) -> None:
    events = client.generate_events(
        "a cat", num_inference_steps=900, scheduler="ddim", request_id="to-cancel"
    )
    async for event in events:
        if event.HasField("step") and event.step.step == 3:
            break
    await events.aclose()
    assert await until(lambda: ended(stack, "to-cancel"))


async def test_a_deadline_frees_the_denoiser(stack: Stack) -> None:
    # A size that no test has: where a step's time is known, such a request is refused before it starts.
    options: Any = {"num_inference_steps": 900, "scheduler": "ddim", "width": 56, "height": 40}
    async with AsyncClient(stack.target, timeout=1.0) as hasty:
        with pytest.raises(SfumatoError) as error:
            await hasty.generate("a cat", request_id="too-late", **options)
    assert error.value.code == "DEADLINE_EXCEEDED"
    assert await until(lambda: ended(stack, "too-late"))


def ended(stack: Stack, request_id: str) -> bool:
    """Whether a denoiser logged the end of the request's stream: the request's id crosses services."""
    method = "/sfumato.v1.DenoiserService/Denoise"
    return any(
        log_lines(service.log, event="call", method=method, request_id=request_id)
        for service in stack.denoisers
    )


async def test_metrics_count_requests_by_code(client: AsyncClient, stack: Stack) -> None:
    await client.generate("a cat", num_inference_steps=1)
    port = stack.gateway.environment["SFUMATO_GATEWAY_METRICS_PORT"]
    url = f"http://127.0.0.1:{port}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    assert 'sfumato_requests_total{code="OK",method="/sfumato.v1.GatewayService/Generate"}' in text


async def test_reflection_lists_the_service(stack: Stack) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(stack.target) as channel:
        names = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"sfumato.v1.GatewayService", "google.longrunning.Operations"} <= set(names)
