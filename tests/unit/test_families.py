"""Families of one service: what loading takes and leaves, and what a name may be."""

import asyncio
import multiprocessing
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from prometheus_client import REGISTRY

from sfumato.common import calls
from sfumato.common.config import FamiliesSettings
from sfumato.common.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from sfumato.common.families import Families, Listed
from sfumato.common.family_loader import Source
from sfumato.common.model_memory import ALLOWANCE_BYTES, cgroup_free_bytes, free_bytes, model_bytes
from sfumato.common.work import run
from sfumato.decoder.config import DecoderSettings
from sfumato.decoder.servicer import DecoderServicer
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.servicer import DenoiserServicer
from sfumato.encoder.config import EncoderSettings
from sfumato.encoder.servicer import EncoderServicer
from tests.tiny_family import save_tiny_family

CPU = torch.device("cpu")
OTHER = "families/other"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of families."""
    root = tmp_path_factory.mktemp("families")
    for name in ("own", "other", "third"):
        save_tiny_family(root / name)
    return root


def families(folder: Path, load: Callable[[Path], Any], num_bytes: int = 10, limit: int = 0) -> Families[Any]:
    """Of models that the test makes."""
    settings = FamiliesSettings(family=folder / "own", families=folder, model_memory_bytes=limit)

    async def warm(_: Any) -> None:
        pass

    return Families(settings, Source(lambda path, *_: load(path), lambda *_: num_bytes, CPU, warm))


async def test_the_event_loop_goes_on_while_one_loads_and_the_old_ones_serve(folder: Path) -> None:
    begun, may_load = threading.Event(), threading.Event()

    def load(path: Path) -> str:
        if path.name == "other":
            begun.set()
            assert may_load.wait(10)
        return path.name

    opened = families(folder, load)
    await opened.load_default()
    loading = asyncio.create_task(opened.load(OTHER, 1))
    assert await asyncio.to_thread(begun.wait, 10)
    with opened.use("") as models:
        assert models == "own"
    assert [(one.name, one.state) for one in opened.listed()] == [
        ("families/own", "LOADED"),
        (OTHER, "LOADING"),
    ]
    with pytest.raises(Unavailable, match="not loaded here"), opened.use(OTHER):
        pass
    may_load.set()
    await loading
    with opened.use(OTHER) as models:
        assert models == "other"
    opened.close()


async def test_unloading_waits_for_those_who_use_it(folder: Path) -> None:
    opened = families(folder, lambda path: path.name)
    await opened.load_default()
    await opened.load(OTHER, 1)
    with opened.use(OTHER):
        unloading = asyncio.create_task(opened.unload(OTHER, 2))
        await asyncio.sleep(0.05)
        assert not unloading.done()
        with pytest.raises(NotFound, match="was unloaded"), opened.use(OTHER):
            pass
    await unloading
    assert {one.name: one.state for one in opened.listed()} == {"families/own": "LOADED", OTHER: "UNLOADED"}
    opened.close()


async def test_unloading_says_at_its_deadline_who_still_uses_it_and_holds_up_no_other(folder: Path) -> None:
    opened = families(folder, lambda path: path.name)
    await opened.load_default()
    await opened.load(OTHER, 1)
    with opened.use(OTHER):
        calls.deadline.set(time.monotonic() + 0.5)
        unloading = asyncio.create_task(opened.unload(OTHER, 2))
        await asyncio.sleep(0)
        await opened.load("families/third", 1)
        with pytest.raises(FailedPrecondition, match=r"1 request still used families/other after 0\.[345] s"):
            await unloading
        assert opened.listed()[1].state == "UNLOADING"
        calls.deadline.set(None)
        unloading = asyncio.create_task(opened.unload(OTHER, 2))
    await unloading
    assert opened.listed()[1].state == "UNLOADED"
    opened.close()


async def test_a_newer_load_keeps_what_is_still_used_at_once(folder: Path) -> None:
    may_load = threading.Event()

    def load(path: Path) -> str:
        assert path.name != "third" or may_load.wait(10)
        return path.name

    opened = families(folder, load)
    await opened.load_default()
    await opened.load(OTHER, 1)
    other = asyncio.create_task(opened.load("families/third", 1))
    with opened.use(OTHER):
        unloading = asyncio.create_task(opened.unload(OTHER, 2))
        await asyncio.sleep(0.05)
        with pytest.raises(FailedPrecondition, match="older than 2"):
            await opened.load(OTHER, 1)
        await asyncio.wait_for(opened.load(OTHER, 3), 5)  # whatever else is being loaded
        with pytest.raises(FailedPrecondition, match="was loaded again"):
            await unloading
        with opened.use(OTHER):
            pass
    assert opened.listed()[1] == Listed(OTHER, "LOADED", 10, 3)
    may_load.set()
    await other
    opened.close()


async def test_unloading_waits_for_its_own_load_and_for_no_other(folder: Path) -> None:
    may_load = {name: threading.Event() for name in ("own", "other", "third")}
    may_load["own"].set()

    def load(path: Path) -> str:
        assert may_load[path.name].wait(10)
        return path.name

    opened = families(folder, load)
    await opened.load_default()
    loading = asyncio.create_task(opened.load(OTHER, 1))
    await asyncio.sleep(0.05)
    unloading = asyncio.create_task(opened.unload(OTHER, 2))
    await asyncio.sleep(0.05)
    assert opened.listed()[1].state == "LOADING"
    may_load["other"].set()
    await asyncio.gather(loading, unloading)
    assert opened.listed()[1] == Listed(OTHER, "UNLOADED", 0, 2)
    await opened.load(OTHER, 3)
    loading = asyncio.create_task(opened.load("families/third", 1))
    await asyncio.sleep(0.05)
    await asyncio.wait_for(opened.unload(OTHER, 4), 10)
    assert not loading.done()
    may_load["third"].set()
    await loading
    opened.close()


def test_unloading_gives_the_memory_back(folder: Path) -> None:
    """In a process of its own: in this one, what other tests left behind may be let go meanwhile."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        before, held, left = process.submit(memory_around_a_load, folder).result()
    assert held - before > 140 * 2**20
    assert left - before < 20 * 2**20


def memory_around_a_load(folder: Path) -> tuple[int, int, int]:
    """Resident bytes before, with and after a family of small pieces, which the allocator likes to keep."""
    process = psutil.Process()

    async def around() -> tuple[int, int, int]:
        opened = families(folder, lambda _: [torch.ones(4096) for _ in range(10_000)])
        await opened.load_default()
        before = process.memory_info().rss
        await opened.load(OTHER, 1)
        held = process.memory_info().rss
        await opened.unload(OTHER, 2)
        left = process.memory_info().rss
        opened.close()
        return before, held, left

    return asyncio.run(around())


async def test_what_would_not_fit_is_refused_before_it_is_loaded(folder: Path) -> None:
    loaded: list[str] = []
    opened = families(folder, lambda path: loaded.append(path.name), num_bytes=60, limit=100)
    await opened.load_default()
    with pytest.raises(ResourceExhausted) as refused:
        await opened.load(OTHER, 1)
    assert (refused.value.field, refused.value.limit) == ("family", "at most 100 bytes with those loaded")
    assert refused.value.value.startswith("120: 60 held and 60 of families/other")
    assert loaded == ["own"]
    opened.close()


async def test_a_name_is_never_a_path(folder: Path) -> None:
    opened = families(folder, lambda path: path.name)
    await opened.load_default()
    for name in ("families/../own", "families/a/b", "families/.", "families/", "/etc", "other", "x" * 100):
        with pytest.raises(InvalidArgument):
            await opened.load(name, 1)
        with pytest.raises(InvalidArgument), opened.use(name):
            pass
    with pytest.raises(NotFound, match="families/other, families/own, families/third"):
        await opened.load("families/nowhere", 1)
    with pytest.raises(FailedPrecondition, match="stays"):
        await opened.unload("families/own", 1)
    opened.close()


async def test_the_newest_wish_holds(folder: Path) -> None:
    opened = families(folder, lambda path: path.name)
    await opened.load_default()
    await opened.unload(OTHER, 5)  # never loaded, but the wish is remembered
    with pytest.raises(FailedPrecondition, match="older than 5"):
        await opened.load(OTHER, 4)
    await opened.load(OTHER, 6)
    await opened.load(OTHER, 7)
    await opened.load(OTHER, 6)  # as two gateways may wish it at one time
    with pytest.raises(FailedPrecondition, match="older than 7"):
        await opened.unload(OTHER, 6)
    assert [(one.state, one.revision) for one in opened.listed()[1:]] == [("LOADED", 7)]
    opened.close()


@pytest.mark.parametrize(
    ("raised", "refused", "said"),
    [
        (FailedPrecondition("the weights are wrong"), FailedPrecondition, "wrong"),
        # Another process may have taken it since the bytes were counted.
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            ResourceExhausted,
            "has memory for at present",
        ),
    ],
    ids=["wrong weights", "no memory"],
)
async def test_a_load_that_failed_says_why_and_leaves_nothing(
    folder: Path, raised: Exception, refused: type[Exception], said: str
) -> None:
    def load(path: Path) -> str:
        if path.name == "other":
            raise raised
        return path.name

    opened = families(folder, load)
    await opened.load_default()
    with pytest.raises(refused, match=said):
        await opened.load(OTHER, 1)
    assert [one.name for one in opened.listed()] == ["families/own"]
    opened.close()


async def test_the_services_hold_nothing_of_a_family_that_was_unloaded(folder: Path) -> None:
    given: dict[str, Any] = {"family": folder / "own", "families": folder, "engine": "torch"}
    encoder = EncoderServicer(EncoderSettings(**given))
    decoder = DecoderServicer(DecoderSettings(**given))
    denoiser = DenoiserServicer(DenoiserSettings(**given))
    servicers: tuple[Any, ...] = (encoder, decoder, denoiser)
    left: list[weakref.ref[Any]] = []
    for servicer in servicers:
        await servicer.load()
        await servicer.families.load(OTHER, 1)
    with encoder.families.use(OTHER) as clip:
        clip.joint.traced_features(torch.zeros(1, 3, 32, 32))
        left += [
            weakref.ref(clip.text_encoder.model),
            weakref.ref(clip.joint.model),
            weakref.ref(clip.noised.model),
        ]
    with decoder.families.use(OTHER) as autoencoder:
        autoencoder.vae.linearise(torch.zeros(1, 4, 8, 8))
        left.append(weakref.ref(autoencoder.vae.model))
    with denoiser.families.use(OTHER) as unets:
        step = torch.zeros(1, 4, 8, 8), 1.0, Conditioning(torch.zeros(2, 8, 32))
        await denoiser.queue.noise_pred(unets.unets.unet, *step)
        await denoiser.gradients.linearise(unets.unets.torch_unet, *step)
        unets.unets.attention.noise_pred_and_maps(step[0], 1.0, step[2][:1])
        left += [weakref.ref(unets.unets.torch_unet.model), weakref.ref(unets.unets.attention.model)]
    del clip, autoencoder, unets
    assert all(reference() is not None for reference in left)
    for servicer in servicers:
        await servicer.families.unload(OTHER, 2)
    assert [reference() for reference in left] == [None] * len(left)
    for servicer in servicers:
        await servicer.close()


@pytest.mark.parametrize(
    ("servicer_of", "settings_of"), [(EncoderServicer, EncoderSettings), (DecoderServicer, DecoderSettings)]
)
async def test_the_first_forwards_of_a_family_wait_for_those_of_others(
    folder: Path, servicer_of: Any, settings_of: Any
) -> None:
    """Else the memory that they take would be measured as the new family's."""
    servicer = servicer_of(settings_of(family=folder / "own", families=folder, engine="torch"))
    await servicer.load()
    end = threading.Event()
    other = asyncio.create_task(run(servicer.executor, "other", end.wait, 20))
    loading = asyncio.create_task(servicer.families.load(OTHER, 1))
    while not REGISTRY.get_sample_value("sfumato_model_queued", {"work": "warm"}):
        assert not loading.done()
        await asyncio.sleep(0.01)
    end.set()
    await asyncio.gather(other, loading)
    with servicer.families.use(OTHER):
        await servicer.close()


def test_a_control_group_limits_what_is_free(tmp_path: Path) -> None:
    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 500\ninactive_file 150\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert cgroup_free_bytes(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_free_bytes(tmp_path) > 2**60
    assert cgroup_free_bytes(tmp_path / "none") > 2**60


def test_what_torch_keeps_of_a_gpu_is_free_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would count as taken for ever after the first large forward."""
    gpu = {"mem_get_info": (300, 1000), "memory_reserved": 600, "memory_allocated": 200}
    for name, value in gpu.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes(torch.device("cuda")) == 700


def test_what_is_counted_is_what_the_weights_take(folder: Path) -> None:
    from diffusers import AutoencoderKL

    model: Any = AutoencoderKL.from_pretrained(folder / "own" / "vae")
    held = sum(parameter.nbytes for parameter in model.parameters())
    counted = model_bytes(folder / "own", {"vae": 2, "text_encoder_2": 1}) - ALLOWANCE_BYTES
    assert counted == pytest.approx(2.2 * held, rel=1e-3)
    assert model_bytes(folder / "own", {"vae": 2}, torch.float16) - ALLOWANCE_BYTES == counted // 2
    assert 2**20 < free_bytes(CPU) <= psutil.virtual_memory().total
