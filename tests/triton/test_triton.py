"""The services' forward passes on a real Triton server, from the repository that our exporter writes."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from PIL import Image

from sfumato.common import triton as engine
from sfumato.common.errors import FailedPrecondition, Unavailable
from sfumato.common.triton import open_triton
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.engine_onnx import unet_graph
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato_client import AsyncClient, SfumatoError
from sfumato_client.stack import Stack, free_port, local_stack
from tests.tiny_family import save_tiny_family
from tests.triton.server import TritonServer, export, triton_server

CPU = torch.device("cpu")
REQUEST: dict[str, Any] = {"seed": 3, "num_inference_steps": 8, "scheduler": "euler_a", "guidance_scale": 4}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own: other tests look for processes that were left with theirs."""
    return save_tiny_family(tmp_path_factory.mktemp("triton-family") / "tiny")


@pytest.fixture(scope="module")
def server(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton")
    export(folder / "models", family)
    with triton_server(folder / "models", folder / "triton.log") as running:
        yield running


@pytest.fixture(scope="module")
def triton_stack(
    server: TritonServer, family: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """All services, each with engine triton."""
    settings = {"SFUMATO_GATEWAY_CANARY_SECONDS": "3600"}  # steps are counted
    for name in ("ENCODER", "DECODER", "DENOISER"):
        settings |= {f"SFUMATO_{name}_ENGINE": "triton", f"SFUMATO_{name}_TRITON_URL": server.url}
        settings[f"SFUMATO_{name}_NUM_THREADS"] = "1"
    with local_stack(family, log_dir=tmp_path_factory.mktemp("triton-logs"), settings=settings) as running:
        yield running


@pytest.fixture
async def on_triton(triton_stack: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(triton_stack.target, timeout=120) as opened:
        yield opened


def pixels(result: Any) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(result.images[0].data)), np.int16)


def num_inferences(server: TritonServer) -> dict[str, int]:
    """By model, since the server started."""
    with triton.InferenceServerClient(server.url) as client:
        statistics = client.get_inference_statistics()
    return {model.name: model.inference_count for model in statistics.model_stats}


async def test_an_image_made_through_triton_is_torchs(
    on_triton: AsyncClient, tiny_stack: Stack, server: TritonServer
) -> None:
    before = num_inferences(server)
    got = await on_triton.generate("a cat", **REQUEST)
    after = num_inferences(server)
    async with AsyncClient(tiny_stack.target, timeout=120) as on_torch:
        expected = await on_torch.generate("a cat", **REQUEST)
    assert np.abs(pixels(got) - pixels(expected)).max() <= 2
    used = {name: after[name] - before[name] for name in after}
    assert used.pop("unet") in (16, 17)  # the gateway looks at a new denoiser by a step
    assert used == {"decoder": 1, "text_encoder": 2}  # the text, and the empty one


async def test_an_image_does_not_depend_on_what_waits_beside_it(on_triton: AsyncClient) -> None:
    alone = await on_triton.generate("a cat", **REQUEST)
    others = [{**REQUEST, "seed": seed} for seed in range(3)]
    beside, *_ = await asyncio.gather(*(on_triton.generate("a cat", **given) for given in [REQUEST, *others]))
    assert beside.images[0].data == alone.images[0].data


async def test_gradients_and_attention_stay_on_torch_and_the_log_says_so(
    on_triton: AsyncClient, triton_stack: Stack, server: TritonServer
) -> None:
    before = num_inferences(server)["unet"]
    guided = await on_triton.generate("a cat", guidance="clip", num_cutouts=2, num_inference_steps=2)
    assert guided.images
    assert num_inferences(server)["unet"] == before
    lines = triton_stack.denoisers[0].log.read_text().splitlines()
    (said,) = (json.loads(line) for line in lines if "run on Triton" in line)
    assert "gradients and attention stay on torch" in said["event"]
    assert said["graph"] == "unet"


async def killed_at_step(client: AsyncClient, server: TritonServer, step: int) -> bytes:
    """The image of REQUEST, whose server is killed on the way."""
    image, killed = b"", False
    async for event in client.generate_events("a cat", **REQUEST):
        if event.HasField("step") and event.step.step >= step and not killed:
            await asyncio.to_thread(server.kill)
            killed = True
        if event.HasField("image"):
            image = event.image.data
    assert killed
    return image


async def test_a_server_that_dies_and_is_back_in_time_changes_nothing(
    on_triton: AsyncClient, server: TritonServer
) -> None:
    undisturbed = await on_triton.generate("a cat", **REQUEST)
    making = asyncio.create_task(killed_at_step(on_triton, server, 3))
    while server.process.poll() is None:
        assert not making.done()
        await asyncio.sleep(0.05)
    await asyncio.to_thread(server.start)
    assert await making == undisturbed.images[0].data


async def test_a_server_that_stays_away_is_named_and_used_again_when_it_is_back(
    on_triton: AsyncClient, server: TritonServer
) -> None:
    with pytest.raises(SfumatoError) as error:
        await killed_at_step(on_triton, server, 3)
    assert error.value.code == "UNAVAILABLE"
    assert f"the Triton server at {server.url} does not answer for model unet" in error.value.message
    start = time.monotonic()
    with pytest.raises(SfumatoError) as error:
        await on_triton.generate("a text that the gateway has not kept", **REQUEST)
    assert time.monotonic() - start < 40  # the encoder asked for 10 s, and the gateway not five times
    assert error.value.code == "UNAVAILABLE"
    assert f"the Triton server at {server.url} does not answer for model text_encoder" in error.value.message
    await asyncio.to_thread(server.start)
    assert (await on_triton.generate("a cat", **REQUEST)).images


def test_a_server_of_other_weights_is_refused(server: TritonServer, family: Path) -> None:
    unet = TorchUNet(family, CPU)
    with torch.no_grad():
        unet.model.conv_out.weight.mul_(1.01)
    with pytest.raises(FailedPrecondition, match=f"{server.url} has a unet that differs from this family's"):
        open_triton(unet_graph(unet), server.url)


def test_a_server_without_the_model_is_refused(server: TritonServer, family: Path) -> None:
    graph = unet_graph(TorchUNet(family, CPU))
    object.__setattr__(graph, "name", "other")
    with pytest.raises(FailedPrecondition, match=r"cannot run model other .*deploy/triton/export\.py"):
        open_triton(graph, server.url)


def test_a_server_that_never_answers_ends_the_start(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "RETRY_SECONDS", 1.0)
    url, start = f"127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(Unavailable, match=f"the Triton server at {url} does not answer for model unet"):
        open_triton(unet_graph(TorchUNet(family, CPU)), url)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("given", [{"engine": "triton"}, {"triton_url": "127.0.0.1:8001"}])
def test_the_engine_and_its_url_come_together(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="engine triton and triton_url"):
        DenoiserSettings(**given)
