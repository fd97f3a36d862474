"""Families while gateways load and unload them: who waits, who is told what, and how it ends."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import torch

from sfumato.common import calls, family_loader, held_families
from sfumato.common.errors import FailedPrecondition, NotFound, Unavailable
from sfumato.common.status import ForwardedError
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.conditioning import Conditioning
from tests.weightless import OTHER, OWN, THIRD, family_folder, weightless

LATENTS = torch.ones(1, 4, 8, 8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_folder(tmp_path_factory.mktemp("weightless"))


@pytest.fixture(autouse=True)
def nothing_to_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over all that the tests of this process hold takes its time."""
    for module in (family_loader, held_families):
        monkeypatch.setattr(module, "free_unused", lambda: None)


@asynccontextmanager
async def trajectory(services: ModelServices, family: str) -> AsyncIterator[None]:
    """One that has done a step, at a denoiser as long as the block lasts."""
    stream = services.of(family).open_trajectory(Conditioning(torch.zeros(1, 8, 16)))
    try:
        assert float((await stream.noise_pred(0, LATENTS, 1.0)).max()) == 2.0
        yield
    finally:
        await stream.close()


async def test_an_unload_ends_near_its_deadline_says_how_many_use_it_and_holds_up_no_other(
    root: Path,
) -> None:
    async with weightless(root) as stack, stack.gateway() as (_, families):
        await families.load(OTHER)
        with families.served.use(OTHER), families.served.use(OTHER):
            calls.deadline.set(time.monotonic() + 1.0)
            unloading = asyncio.create_task(families.unload(OTHER))
            await asyncio.sleep(0.1)
            with pytest.raises(NotFound), families.served.use(OTHER):
                pass
            await families.load(THIRD)
            await families.unload(THIRD)
            assert not unloading.done()
            with pytest.raises(
                FailedPrecondition, match=r"2 requests still used families/other after 0\.9 s"
            ):
                await unloading
        assert (stack.states(OTHER), stack.states(THIRD)) == ({"LOADED"}, {"UNLOADED"})
        with families.served.use(OTHER):
            pass


async def test_requests_of_another_gateway_end_an_unload_too_and_every_service_has_the_family_still(
    root: Path,
) -> None:
    async with (
        weightless(root, num_denoisers=2) as stack,
        stack.gateway() as (_, families),
        stack.gateway() as (other_services, other),
    ):
        await families.load(OTHER)
        await other.look()
        async with trajectory(other_services, OTHER):
            calls.deadline.set(time.monotonic() + 1.0)
            with pytest.raises(ForwardedError, match="1 request still used families/other") as refused:
                await families.unload(OTHER)
            assert refused.value.grpc_code is grpc.StatusCode.FAILED_PRECONDITION
            assert stack.states(OTHER) == {"LOADED"}  # also at the denoiser that had let it go
            for gateway in (families, other):
                await gateway.look()
                with gateway.served.use(OTHER):
                    pass
        calls.deadline.set(None)
        await other.unload(OTHER)
        assert stack.states(OTHER) == {"UNLOADED"}


async def test_a_family_neither_let_go_nor_kept_everywhere_is_brought_again(root: Path) -> None:
    async with (
        weightless(root, num_denoisers=2) as stack,
        stack.gateway() as (_, families),
        stack.gateway() as (other_services, other),
    ):
        await families.load(OTHER)
        await other.look()
        async with trajectory(other_services, OTHER):
            for denoiser in stack.denoisers:  # the one that has let it go has no room any more
                denoiser.refused = FailedPrecondition("there is no room")
            calls.deadline.set(time.monotonic() + 0.5)
            with pytest.raises(Unavailable, match=r"1 request still used .*there is no room.*loaded again"):
                await families.unload(OTHER)
            assert sorted(denoiser.states[OTHER] for denoiser in stack.denoisers) == ["LOADED", "UNLOADED"]
            with pytest.raises(Unavailable, match="being loaded"), families.served.use(OTHER):
                pass
            for denoiser in stack.denoisers:
                denoiser.refused = None
            for _ in range(20):
                await families.look()
                await asyncio.sleep(0.05)
            with families.served.use(OTHER):
                assert stack.states(OTHER) == {"LOADED"}


async def test_a_service_that_cannot_say_what_it_holds_is_quoted(root: Path) -> None:
    async with weightless(root) as stack, stack.gateway() as (services, _):
        with pytest.raises(ForwardedError, match="there is no families/nowhere") as refused:
            await services.of("families/nowhere").family()
        assert refused.value.grpc_code is grpc.StatusCode.NOT_FOUND
        assert stack.states(OWN) == {"LOADED"}


async def test_a_load_keeps_a_family_whose_unload_waits(root: Path) -> None:
    async with weightless(root) as stack, stack.gateway() as (_, families):
        await families.load(OTHER)
        with families.served.use(OTHER):
            unloading = asyncio.create_task(families.unload(OTHER))
            await asyncio.sleep(0.1)
            with pytest.raises(FailedPrecondition, match="being loaded or let go"):
                await families.unload(OTHER)
            await asyncio.wait_for(families.load(OTHER), 5)
            with families.served.use(OTHER):
                pass
        with pytest.raises(FailedPrecondition, match="was loaded again"):
            await unloading
        assert stack.states(OTHER) == {"LOADED"}


@pytest.mark.parametrize("turns", range(6))
async def test_a_load_as_the_last_request_ends_leaves_all_or_nothing(root: Path, turns: int) -> None:
    """turns: of the loop in between."""
    async with weightless(root) as stack, stack.gateway() as (_, families):
        await families.load(OTHER)
        with families.served.use(OTHER):
            unloading = asyncio.create_task(families.unload(OTHER))
            await asyncio.sleep(0.1)
        for _ in range(turns):
            await asyncio.sleep(0)
        loaded, unloaded = await asyncio.gather(families.load(OTHER), unloading, return_exceptions=True)
        is_served = OTHER in families.served
        assert stack.states(OTHER) == ({"LOADED"} if is_served else {"UNLOADED"})
        assert (loaded is None, unloaded is None) == (is_served, not is_served)


async def test_requests_outlive_what_another_gateway_takes_back(root: Path) -> None:
    """Withdrawn and served again in between, the family is still used by the request of before."""
    async with (
        weightless(root) as stack,
        stack.gateway() as (_, families),
        stack.gateway() as (_, other),
    ):
        await families.load(OTHER)
        await other.look()
        with other.served.use(OTHER):
            await families.unload(OTHER)
            await other.look()
            await families.load(OTHER)
            await other.look()
            calls.deadline.set(time.monotonic() + 0.5)
            with pytest.raises(FailedPrecondition, match="1 request still used"):
                await other.unload(OTHER)
        assert stack.states(OTHER) == {"LOADED"}


async def test_a_family_loaded_on_busy_denoisers_is_served(root: Path) -> None:
    async with weightless(root) as stack, stack.gateway() as (services, families):
        async with trajectory(services, ""):
            await families.load(OTHER)
            async with trajectory(services, OTHER):
                pass
        assert stack.states(OTHER) == {"LOADED"}


async def test_what_another_gateway_unloaded_is_not_found_and_not_waited_for(root: Path) -> None:
    """A request that was accepted, and not at a denoiser yet."""
    async with (
        weightless(root) as stack,
        stack.gateway() as (_, families),
        stack.gateway() as (services, other),
    ):
        await families.load(OTHER)
        await other.look()
        await families.unload(OTHER)
        for noticed in (False, True):
            if noticed:
                await other.look()
            start = time.monotonic()
            with pytest.raises(ForwardedError, match="families/other was unloaded; families/own") as refused:
                async with trajectory(services, OTHER):
                    pass
            assert refused.value.grpc_code is grpc.StatusCode.NOT_FOUND
            assert time.monotonic() - start < 0.8  # of replica_wait_seconds
        assert stack.states(OTHER) == {"UNLOADED"}


async def test_a_load_that_fails_here_takes_nothing_from_another_gateway(root: Path) -> None:
    async with (
        weightless(root) as stack,
        stack.gateway() as (_, families),
        stack.gateway() as (services, other),
    ):
        await families.load(OTHER)

        async def family() -> None:
            raise Unavailable("no denoiser does a canary step")

        services.of = lambda _: services  # type: ignore[method-assign]
        services.family = family  # type: ignore[assignment, method-assign]
        with pytest.raises(Unavailable, match="canary"):
            await other.load(OTHER)
        assert stack.states(OTHER) == {"LOADED"}
        await families.look()
        assert OTHER in families.served


async def test_a_family_that_was_loaded_anew_has_its_new_weights_at_every_gateway(root: Path) -> None:
    async with weightless(root) as stack, stack.gateway() as (_, families), stack.gateway() as (_, other):
        await families.load(OTHER)
        for version in (1, 2):
            await other.look()
            for gateway in (families, other):
                with gateway.served.use(OTHER) as served:
                    encoded = await served.services.encode_text(["a cat"])
                    assert float(encoded.prompt_embeds.max()) == version
                    assert served.services.weights()["denoiser"] == f"other {version}"
                    assert served.info.sample_size == 8 * version
            for replica in stack.replicas:
                replica.version = 2
            await families.unload(OTHER)
            await families.load(OTHER)


async def test_two_gateways_may_load_or_unload_a_family_at_one_time(root: Path) -> None:
    async with (
        weightless(root, num_denoisers=3) as stack,
        stack.gateway() as (_, families),
        stack.gateway() as (_, other),
    ):
        for _ in range(5):
            await asyncio.gather(families.load(OTHER), other.load(OTHER))
            assert stack.states(OTHER) == {"LOADED"}
            await asyncio.gather(families.unload(OTHER), other.unload(OTHER))
            assert stack.states(OTHER) == {"UNLOADED"}


async def test_one_that_a_replica_cannot_load_can_be_unloaded_by_a_gateway_that_does_not_serve_it(
    root: Path,
) -> None:
    async with weightless(root) as stack:
        async with stack.gateway() as (_, families):
            await families.load(OTHER)
        # The decoder started again, and what it has no longer fits there.
        await stack.decoder.families.unload(OTHER, time.time_ns())
        stack.decoder.families._revisions.clear()
        stack.decoder.refused = FailedPrecondition("its weights are damaged")
        async with stack.gateway() as (_, families):
            assert OTHER not in families.served
            with pytest.raises(Unavailable, match="being loaded"), families.served.use(OTHER):
                pass
            await families.unload(OTHER)
            assert stack.states(OTHER) == {"UNLOADED"}
            await families.look()
            with pytest.raises(NotFound), families.served.use(OTHER):
                pass


async def test_a_newer_wish_is_brought_though_the_last_one_was_refused(root: Path) -> None:
    async with weightless(root) as stack, stack.gateway() as (_, families):
        stack.decoder.refused = FailedPrecondition("its weights are damaged")
        revision = time.time_ns()
        for replica in (stack.encoder, *stack.denoisers):
            await replica.families.load(OTHER, revision)
        await families.look()
        await asyncio.sleep(0.2)
        assert stack.decoder.states.get(OTHER, "") == ""
        stack.decoder.refused = None
        await stack.encoder.families.load(OTHER, revision + 1)
        await families.look()
        await asyncio.sleep(0.2)
        assert stack.decoder.states[OTHER] == "LOADED"


async def test_a_cancelled_load_goes_on_and_is_served(root: Path) -> None:
    async with weightless(root) as stack, stack.gateway() as (_, families):
        stack.decoder.may_load.clear()
        loading = asyncio.create_task(families.load(OTHER))
        await asyncio.sleep(0.1)
        loading.cancel()
        with pytest.raises(FailedPrecondition, match="being loaded or let go"):
            await families.unload(OTHER)
        assert families.served.names == [OWN]
        stack.decoder.may_load.set()
        await asyncio.wait_for(families.load(OTHER), 5)
        assert stack.states(OTHER) == {"LOADED"}
        with families.served.use(OTHER):
            pass
