"""Steps that go to a denoiser together, where nobody looks in between: fewer messages, the same image."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from sfumato_protos.v1 import denoiser_pb2, denoiser_pb2_grpc, tensor_pb2

from sfumato_client import AsyncClient
from sfumato_client.stack import Stack
from tests.bench.serving import growth, totals
from tests.integration.test_faults import bring_back, busiest
from tests.tiny_family import CONTEXT, WIDTH

PROMPT = "a fox"


async def images(stack: Stack, **options: Any) -> tuple[list[tuple[bytes, tuple[bytes, ...]]], float]:
    """Each image with its digests, and how many messages went to the denoisers for it."""
    before = totals(stack)
    async with AsyncClient(stack.target, timeout=120) as client:
        result = await client.generate(PROMPT, **options)
    messages = growth(before, totals(stack), "sfumato_gateway_run_steps_count")
    return [(image.data, tuple(image.latents_digests)) for image in result.images], messages


@pytest.mark.parametrize(
    "options",
    [
        {"scheduler": "dpmpp_2m", "num_images": 2},
        {"scheduler": "ddpm"},
        {"scheduler": "unipc", "guidance_scale": 1.0},
        {"scheduler": "heun", "guidance_interval": (0.3, 0.7)},
    ],
    ids=lambda options: options["scheduler"],
)
async def test_an_image_has_the_bits_that_it_has_step_by_step(
    tiny_stack: Stack, options: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"seed": 4, "num_inference_steps": 12, "width": 16, "height": 16, **options}
    watched, many = await images(tiny_stack, **given, progress_interval_steps=1)
    unwatched, few = await images(tiny_stack, **given, progress_interval_steps=0)
    assert unwatched == watched
    steps = sum(len(digests) for _, digests in watched)
    assert many == steps
    assert few <= steps / 4
    # Previews need the steps that they are of.
    shown, some = await images(tiny_stack, **given, progress_interval_steps=0, preview_interval_steps=5)
    assert shown == watched
    assert few <= some <= steps / 2


async def test_a_denoiser_killed_in_the_middle_of_a_run_changes_nothing(
    client: AsyncClient, stack: Stack
) -> None:
    options: dict[str, Any] = {"seed": 9, "num_inference_steps": 60, "scheduler": "euler_a"}
    undisturbed = await client.generate(PROMPT, **options)
    again = asyncio.create_task(client.generate(PROMPT, **options))
    await asyncio.sleep(0.2)
    killed = await asyncio.to_thread(busiest, stack.denoisers)
    killed.process.kill()
    result = await again
    await asyncio.to_thread(bring_back, killed)
    assert 1 < result.timings.num_replayed_steps <= 60
    assert result.images[0].data == undisturbed.images[0].data
    assert result.images[0].latents_digests == undisturbed.images[0].latents_digests


async def test_a_cancelled_request_ends_its_run_at_the_next_step(tiny_stack: Stack) -> None:
    before = totals(tiny_stack)

    def steps() -> float:
        return growth(before, totals(tiny_stack), "sfumato_denoiser_step_seconds_count")

    async with AsyncClient(tiny_stack.target, timeout=120) as client:
        image = asyncio.create_task(client.generate(PROMPT, num_inference_steps=900, scheduler="ddim"))
        while steps() < 10:
            await asyncio.sleep(0.05)
        image.cancel()
        await asyncio.wait([image])
    async with asyncio.timeout(10):
        while totals(tiny_stack)["sfumato_denoiser_queued_steps"]:
            await asyncio.sleep(0.02)
    done = steps()
    await asyncio.sleep(0.5)
    assert done == steps() < 900


def tensor(*shape: int, fill: float = 0.5) -> tensor_pb2.Tensor:
    data = np.full(shape, fill, np.float32).tobytes()
    return tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=shape, data=data)


def run_of(**changes: Any) -> denoiser_pb2.DenoiseRun:
    """A run that is accepted, but for the changes: of the run, or of its one step."""
    total = denoiser_pb2.LinearSum(tensors=[0, 1], coefficients=[1.0, -0.1])
    of_step = {"timestep": 500.0, "input_scale": 1.0, "weights": [-1.0, 2.0], "sums": [total]}
    of_run: dict[str, Any] = {"tensors": tensor(1, 4, 8, 8), "returned": [2]}
    for name, value in changes.items():
        (of_step if name in of_step or name == "rows" else of_run)[name] = value
    return denoiser_pb2.DenoiseRun(**{"steps": [denoiser_pb2.LinearStep(**of_step)], **of_run})


async def ask(stack: Stack, run: denoiser_pb2.DenoiseRun) -> denoiser_pb2.DenoiseResponse:
    opening = denoiser_pb2.OpenTrajectory(prompt_embeds=tensor(2, CONTEXT, WIDTH))
    async with grpc.aio.insecure_channel(stack.denoisers[0].target) as channel:
        stub: Any = denoiser_pb2_grpc.DenoiserServiceStub(channel)
        requests = [denoiser_pb2.DenoiseRequest(open=opening), denoiser_pb2.DenoiseRequest(run=run)]
        return await anext(aiter(stub.Denoise(iter(requests))))


async def test_a_run_that_is_right_is_answered(tiny_stack: Stack) -> None:
    response = await ask(tiny_stack, run_of())
    assert tuple(response.tensors.shape) == (1, 4, 8, 8)
    assert len(response.latents_digests) == 1


@pytest.mark.parametrize(
    ("changes", "field", "limit"),
    [
        ({"steps": []}, "run.steps", "1 to 32"),
        ({"tensors": tensor(65, 4, 1, 1)}, "run.tensors", "1 to 64"),
        ({"tensors": tensor(1, 4, 8, 8, fill=np.nan)}, "run.tensors", "finite"),
        ({"tensors": tensor(1, 3, 8, 8)}, "run.tensors.shape", "4"),
        (
            {"tensors": tensor_pb2.Tensor(dtype=1, shape=[1, 4, 4096, 4096])},
            "run.tensors.shape",
            "latent pixels",
        ),
        ({"returned": [3]}, "run.returned", "0 to 2"),
        ({"returned": [-1]}, "run.returned", "0 to 2"),
        ({"returned": [0] * 65}, "run.returned", "0 to 64"),
        ({"rows": [2], "weights": [1.0]}, "run.steps[0].rows", "0 to 1"),
        ({"rows": [0] * 1_000_000}, "run.steps[0].rows", "1000000 rows"),
        ({"weights": [1.0]}, "run.steps[0].weights", "2"),
        ({"weights": [np.nan] * 1_000_000}, "run.steps[0].weights", "1000000"),
        ({"tensors": tensor_pb2.Tensor(dtype=1, shape=[1] * 1_000_000)}, "run.tensors.shape", "(any, 4"),
        ({"weights": [1.0, np.inf]}, "run.steps[0]", "finite"),
        ({"timestep": np.nan}, "run.steps[0]", "finite"),
        ({"sums": []}, "run.steps[0].sums", "1 to 2"),
        ({"sums": [denoiser_pb2.LinearSum()]}, "run.steps[0].sums[0].tensors", "1 to 64"),
        (
            {"sums": [denoiser_pb2.LinearSum(tensors=[0], coefficients=[1, 2])]},
            "run.steps[0].sums[0].coefficients",
            "1, one a tensor",
        ),
        (
            {"sums": [denoiser_pb2.LinearSum(tensors=[2], coefficients=[1])]},
            "run.steps[0].sums[0].tensors",
            "0 to 1",
        ),
    ],
)
async def test_a_run_that_is_wrong_is_refused_by_field_and_limit(
    tiny_stack: Stack, changes: dict[str, Any], field: str, limit: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await ask(tiny_stack, run_of(**changes))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in str(error.value.details())
    assert limit in str(error.value.details())
