"""Several families side by side: loaded, used, refused and let go while others serve."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sfumato_client import AsyncClient, Client, SfumatoError
from sfumato_client.stack import Service, Stack, free_port, local_stack
from tests.editor_process import running
from tests.integration.test_faults import bring_back
from tests.tiny_family import save_tiny_family
from tests.tiny_variants import save_lcm, save_sdxl, save_v_prediction

ENGINES = {f"SFUMATO_{name}_ENGINE": "torch" for name in ("ENCODER", "DECODER", "DENOISER")}
THREADS = {f"SFUMATO_{name}_NUM_THREADS": "1" for name in ("ENCODER", "DECODER", "DENOISER")}
REQUEST: dict[str, Any] = {"seed": 3, "num_inference_steps": 6, "guidance_scale": 4.0, "scheduler": "euler"}
DECODER_BYTES = 120 * 2**20  # three tiny families; each is a little more than the allowance of 32 MiB
# SDXL has other text encoders, a pooled embedding and another UNet.
NAMES = ("", "sdxl", "v_prediction")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of families."""
    folder = tmp_path_factory.mktemp("of-families")
    save_sdxl(folder / "sdxl")
    without_clip = save_v_prediction(folder / "v_prediction")
    for part in ("clip", "clip_noised"):
        shutil.rmtree(without_clip / part)
    save_lcm(folder / "lcm")
    broken = save_tiny_family(folder / "broken")
    with (broken / "vae" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.truncate(10_000)
    return folder


@pytest.fixture(scope="module")
def served(families: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All services, two denoisers."""
    folder = tmp_path_factory.mktemp("families")
    family = save_tiny_family(folder / "tiny")
    settings = {**ENGINES, **THREADS, "SFUMATO_GATEWAY_RESOLVE_SECONDS": "0.5"}
    settings["SFUMATO_DECODER_MODEL_MEMORY_BYTES"] = str(DECODER_BYTES)
    with local_stack(family, denoisers=2, log_dir=folder, families=families, settings=settings) as stack:
        yield stack


@pytest.fixture
async def client(served: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.target, timeout=120) as opened:
        yield opened


async def image(client: AsyncClient, family: str, **options: Any) -> bytes:
    """Of the same request."""
    result = await client.generate("a cat", family=family, **{**REQUEST, **options})
    assert result.parameters.family == f"families/{family or 'tiny'}"
    return result.images[0].data


async def loaded(client: AsyncClient) -> list[str]:
    """Names of those served."""
    return [family.name for family in await client.list_families()]


async def test_families_give_the_same_bits_side_by_side_as_each_alone(
    client: AsyncClient, families: Path, tmp_path: Path
) -> None:
    alone = {"": await image(client, "")}
    with local_stack(families / "sdxl", log_dir=tmp_path, settings=ENGINES | THREADS) as stack:
        async with AsyncClient(stack.target, timeout=120) as other:
            alone["sdxl"] = await image(other, "sdxl")
    during = asyncio.create_task(image(client, "", num_inference_steps=60))
    for name in NAMES[1:]:
        family = await client.load_family(name)
        assert family.name == f"families/{name}"
        assert set(family.memory_bytes) == {"encoder", "denoiser", "decoder"}
    alone["v_prediction"] = await image(client, "v_prediction")
    assert len(set(alone.values())) == len(NAMES)
    assert await during == await image(client, "", num_inference_steps=60)
    order = [*NAMES, *reversed(NAMES), *NAMES]
    images = await asyncio.gather(*(image(client, name) for name in order))
    assert images == [alone[name] for name in order]


async def test_every_kind_of_request_goes_to_its_family(client: AsyncClient) -> None:
    await client.load_family("sdxl")
    for options in ({"guidance": "clip"}, {"guidance": "cfg+noised-clip"}, {"attention_maps": {}}):
        given = {"seed": 1, "num_inference_steps": 2, **options}
        own, other = [
            (await client.generate("a cat", family=name, **given)).images[0].data for name in ("", "sdxl")
        ]
        assert own != other
    edited = await client.edit_prompt("a cat", "a dog", family="sdxl", seed=1, num_inference_steps=2)
    assert edited.parameters.family == "families/sdxl"
    kinds = {"plain": {"guidance": "none"}, "clip": {"guidance": "clip"}}
    compared = await client.compare("a cat", kinds, family="sdxl", seed=1, num_inference_steps=2)
    assert {made.parameters.family for made in compared.generations.values()} == {"families/sdxl"}
    weights = (await client.generate("a cat", family="sdxl", **REQUEST)).weights
    assert weights != (await client.generate("a cat", **REQUEST)).weights


async def test_what_cannot_be_is_refused_with_what_there_is(client: AsyncClient) -> None:
    for name, field in (("nowhere", "family"), ("../tiny", "family")):
        with pytest.raises(SfumatoError, match="families/tiny") as refused:
            await client.generate("a cat", family=name)
        assert (refused.value.code, refused.value.field) == ("NOT_FOUND", field)
        with pytest.raises(SfumatoError, match="families/lcm, families/sdxl") as refused:
            await client.load_family(name)
        assert (refused.value.code, refused.value.field) == ("NOT_FOUND", "name")
    with pytest.raises(SfumatoError, match="is the default family") as refused:
        await client.unload_family("tiny")
    assert refused.value.code == "FAILED_PRECONDITION"
    with pytest.raises(SfumatoError) as refused:
        await client.unload_family("lcm")
    assert refused.value.code == "NOT_FOUND"


async def test_one_that_a_service_cannot_load_is_kept_by_none(client: AsyncClient) -> None:
    with pytest.raises(SfumatoError, match=r"broken/vae/.* is cut short") as refused:
        await client.load_family("broken")
    assert refused.value.code == "FAILED_PRECONDITION"
    response = await client.families_and_limits()
    assert "families/broken" in response.loadable
    assert "families/broken" not in [family.name for family in response.families]


async def test_more_than_the_memory_is_refused_and_kept_by_none(client: AsyncClient) -> None:
    for name in NAMES[1:]:
        await client.load_family(name)
    response = await client.families_and_limits()
    assert response.memory_limit_bytes["decoder"] == DECODER_BYTES
    assert sum(family.memory_bytes["decoder"] for family in response.families) <= DECODER_BYTES
    with pytest.raises(SfumatoError, match="SFUMATO_DECODER_MODEL_MEMORY_BYTES") as refused:
        await client.load_family("lcm")
    assert (refused.value.code, refused.value.field) == ("RESOURCE_EXHAUSTED", "family")
    assert str(DECODER_BYTES) in refused.value.limit
    assert "families/lcm" in refused.value.value
    assert await loaded(client) == ["families/tiny", "families/sdxl", "families/v_prediction"]
    await client.unload_family("v_prediction")
    await client.load_family("lcm")
    accepted = (await client.generate("a cat", family="lcm", seed=1)).parameters
    assert accepted.num_inference_steps == 4  # its own usual sampling
    await client.unload_family("lcm")


async def test_unloading_lets_running_requests_end_and_refuses_new_ones(client: AsyncClient) -> None:
    await client.load_family("v_prediction")
    undisturbed = await image(client, "v_prediction", num_inference_steps=300)
    started = asyncio.Event()

    async def run() -> bytes:
        data = b""
        request = {**REQUEST, "num_inference_steps": 300}
        async for event in client.generate_events("a cat", family="v_prediction", **request):
            started.set()
            data = event.image.data or data
        return data

    going = asyncio.create_task(run())
    await started.wait()
    unloading = asyncio.create_task(client.unload_family("v_prediction"))
    await until_loaded(client, "families/v_prediction", False)
    with pytest.raises(SfumatoError) as refused:
        await image(client, "v_prediction")
    assert refused.value.code == "NOT_FOUND"
    assert not unloading.done()
    assert await going == undisturbed
    await unloading
    assert "families/v_prediction" not in await loaded(client)
    await client.load_family("v_prediction")
    assert await image(client, "v_prediction", num_inference_steps=300) == undisturbed


async def test_unloading_ends_near_its_deadline_and_nothing_has_changed(
    client: AsyncClient, served: Stack
) -> None:
    await client.load_family("v_prediction")
    request = {**REQUEST, "num_inference_steps": 900}
    async with AsyncClient(served.target, timeout=1.5) as hasty:
        going = asyncio.create_task(client.generate("a cat", family="v_prediction", **request))
        await asyncio.sleep(0.2)
        with pytest.raises(
            SfumatoError, match=r"1 request still used families/v_prediction after 1\.[34] s"
        ) as refused:
            await hasty.unload_family("v_prediction")
        assert refused.value.code == "FAILED_PRECONDITION"
        assert not going.done()
        going.cancel()
    assert await image(client, "v_prediction")
    await client.unload_family("v_prediction")


async def test_services_that_start_again_are_brought_the_families(client: AsyncClient, served: Stack) -> None:
    await client.load_family("sdxl")
    before = await image(client, "sdxl")
    gone = served.denoisers[0], served.encoder, served.gateway
    for service in gone:
        service.process.kill()
    await asyncio.gather(*(asyncio.to_thread(bring_back, service) for service in gone))
    assert await until_made(client, "sdxl") == before
    served.denoisers[1].process.kill()  # so that it is the one that started again
    assert await until_made(client, "sdxl") == before
    await asyncio.to_thread(bring_back, served.denoisers[1])


async def test_a_second_gateway_comes_to_the_same_and_its_safety_check_looks_at_every_family(
    client: AsyncClient, served: Stack, tmp_path: Path
) -> None:
    concepts = tmp_path / "concepts.json"
    concepts.write_text('{"concepts": [{"name": "anything", "text": "a cat", "threshold": -1}]}')
    port = free_port()
    environment = {**served.gateway.environment, "SFUMATO_GATEWAY_PORT": str(port)}
    environment["SFUMATO_GATEWAY_SAFETY_CONCEPTS_FILE"] = str(concepts)
    await client.load_family("v_prediction")
    gateway = Service("gateway", port, environment, tmp_path / "gateway.log")
    with running(gateway):
        async with AsyncClient(gateway.target, timeout=60) as second:
            await until_loaded(second, "families/v_prediction", True)
            for name in ("tiny", "v_prediction"):
                with pytest.raises(SfumatoError, match="near anything") as refused:
                    await image(second, name)
                assert refused.value.reason == "IMAGE_WITHHELD"
            # A request of one gateway ends although another one lets its family go.
            started = asyncio.Event()

            async def run() -> None:
                request = {**REQUEST, "num_inference_steps": 300}
                async for event in second.generate_events("a cat", family="v_prediction", **request):
                    if event.HasField("step"):  # it is at a denoiser
                        started.set()

            going = asyncio.create_task(run())
            await started.wait()
            await client.unload_family("v_prediction")
            assert "families/v_prediction" not in await loaded(second)
            with pytest.raises(SfumatoError, match="near anything"):  # it was decoded
                await going
            await second.load_family("v_prediction")
            await until_loaded(client, "families/v_prediction", True)


async def until_loaded(client: AsyncClient, name: str, wanted: bool) -> None:
    """Waits until a gateway serves the family, or no longer."""
    end = time.monotonic() + 20
    while (name in await loaded(client)) is not wanted:
        assert time.monotonic() < end
        await asyncio.sleep(0.1)


async def until_made(client: AsyncClient, family: str) -> bytes:
    """The image, as soon as the services agree again."""
    end = time.monotonic() + 30
    while True:
        try:
            return await image(client, family)
        except SfumatoError as error:
            if error.code != "UNAVAILABLE" or time.monotonic() > end:
                raise
        await asyncio.sleep(0.2)


def test_without_a_folder_of_families_the_refusal_says_how_to_set_one(tiny_stack: Stack) -> None:
    with Client(tiny_stack.target) as client, pytest.raises(SfumatoError, match="_FAMILIES") as refused:
        client.load_family("sdxl")
    assert refused.value.code == "FAILED_PRECONDITION"
