"""A slice of `make fuzz`: mutated messages over all RPCs end in time, with a documented status."""

from tests.fuzz.mutation import Fuzzer
from tests.fuzz.run import fuzz
from tests.fuzz.samples import samples
from tests.rpcs import all_rpcs
from tests.secured import Secured


def test_every_rpc_with_fields_has_a_sample() -> None:
    missing = [
        rpc.path
        for rpc in all_rpcs()
        if rpc.request.DESCRIPTOR.fields and len(samples(rpc.path, rpc.request)) < 2
    ]
    assert not missing


def test_a_seed_gives_the_same_messages_again() -> None:
    rpc = next(rpc for rpc in all_rpcs() if rpc.name == "Generate")
    given = samples(rpc.path, rpc.request)[0]
    first, again, other = (
        [fuzzer.call(given, rpc.request) for _ in range(20)] for fuzzer in map(Fuzzer, (1, 1, 2))
    )
    assert first == again != other


async def test_mutated_messages_end_in_time_with_a_documented_status(secured: Secured) -> None:
    figures = await fuzz(secured, 400, seed=0)
    assert figures.bad == []
    assert figures.dead == []
    assert len(figures.by_rpc) > 15
    assert {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED"} <= set(figures.codes)
