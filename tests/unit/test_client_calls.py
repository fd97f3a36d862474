"""What the client says and does where calls cannot be made, without any gateway."""

import pickle
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any, get_origin, get_type_hints

import pytest
from sfumato_protos.v1 import gateway_pb2

from sfumato_client import AsyncClient, Client, EditPromptResult, GenerateResult, SfumatoError
from sfumato_client import rejoin as rejoining
from sfumato_client.rejoin import RECONNECT_SECONDS, Outage

NOBODY = "127.0.0.1:1"


def test_an_error_comes_through_a_pool_of_processes() -> None:
    error = SfumatoError("INVALID_ARGUMENT", "width must be a multiple of 8, but is 63")
    error.field, error.limit, error.value, error.retry_seconds = "width", "a multiple of 8", "63", 1.5
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  (what multiprocessing does)
    assert str(again) == str(error) == "INVALID_ARGUMENT: width must be a multiple of 8, but is 63"
    assert vars(again) == vars(error)


CALLS: dict[str, Any] = {
    "generate": lambda client, **options: client.generate("a cat", **options),
    "edit_prompt": lambda client, **options: client.edit_prompt("a cat", "a dog", **options),
    "compare": lambda client, **options: client.compare("a cat", {"a setting": options}),
}


@pytest.mark.parametrize(
    ("call", "kind", "options"),
    [
        ("generate", TypeError, {"steps": 5}),
        ("generate", TypeError, {"resume_from": 5}),
        ("edit_prompt", TypeError, {"scheduler": "ddim"}),
        ("compare", TypeError, {"num_inference_steps": 5}),  # settings differ in guidance alone
        ("generate", ValueError, {"num_cutouts": 10**11}),
        ("generate", TypeError, {"guidance_rescale": "much"}),
        ("generate", TypeError, {"guidance_interval": 0.5}),
        ("generate", TypeError, {"clip_prompt_weights": ["heavy"]}),
        ("generate", ValueError, {"negative_prompt": "\ud800"}),
        ("edit_prompt", TypeError, {"weights": {"cat": "much"}}),
        ("compare", TypeError, {"guidance_scale": "large"}),
    ],
)
def test_an_option_that_cannot_be_is_named(call: str, kind: type[Exception], options: dict[str, Any]) -> None:
    with Client(NOBODY) as client, pytest.raises(kind, match=next(iter(options))):
        CALLS[call](client, **options)


def test_a_key_that_cannot_be_sent_is_not_told() -> None:
    with pytest.raises(ValueError, match="api_key") as error:
        Client(NOBODY, api_key="sfu_secret\n")
    assert "secret" not in str(error.value)
    client = Client(NOBODY, api_key=lambda: "sfu_secret\n")
    with client, pytest.raises(ValueError, match="api_key") as error:
        client.list_families()
    assert "secret" not in str(error.value)


def test_a_wait_ends_at_its_timeout_where_no_gateway_is() -> None:
    start = time.monotonic()
    with Client(NOBODY) as client, pytest.raises(SfumatoError, match="UNAVAILABLE"):
        client.wait_operation("operations/any", timeout=0.5)
    assert time.monotonic() - start < 5


def test_a_deadline_is_that_of_all_attempts_together() -> None:
    start = time.monotonic()
    with Client(NOBODY, timeout=1.0) as client, pytest.raises(SfumatoError, match="UNAVAILABLE"):
        client.generate("a cat", request_id="mine")
    assert time.monotonic() - start < 3


def test_a_gateway_is_looked_for_from_when_it_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(rejoining.time, "monotonic", lambda: now)
    lost, outage, looked = SfumatoError("UNAVAILABLE", "connection reset"), Outage(), 0.0
    outage.wait_seconds(lost)
    now += 3600  # an edit waited in its queue, and the gateway was there
    while looked < RECONNECT_SECONDS:
        wait = outage.wait_seconds(lost)
        looked, now = looked + wait, now + wait
    with pytest.raises(SfumatoError, match="connection reset"):
        outage.wait_seconds(lost)


async def test_a_closed_client_says_so() -> None:
    blocking = Client(NOBODY)
    blocking.close()
    with pytest.raises(SfumatoError, match="the client was closed"):
        blocking.list_families()
    with pytest.raises(SfumatoError, match="the client was closed"):
        blocking.generate("a cat", request_id="mine")
    awaited = AsyncClient(NOBODY)
    await awaited.close()
    with pytest.raises(SfumatoError, match="the client was closed"):
        await awaited.list_families()
    with pytest.raises(SfumatoError, match="the client was closed"):
        await awaited.generate("a cat", request_id="mine")


@pytest.mark.parametrize(
    "name", ["generate_events", "events_of", "edit_prompt_events", "compare_events", "watch_edit"]
)
def test_what_is_to_be_closed_is_typed_so(name: str) -> None:
    assert get_origin(get_type_hints(getattr(Client, name))["return"]) is Generator
    assert get_origin(get_type_hints(getattr(AsyncClient, name))["return"]) is AsyncGenerator


def test_results_hold_what_their_events_say() -> None:
    """An edit's and a generation's alike; a request that began anew sends its images again."""
    image = gateway_pb2.Image(index=0, seed=3, data=b"png", width=8, height=8)
    for result, kind in (
        (GenerateResult(), gateway_pb2.GenerateResponse),
        (EditPromptResult(), gateway_pb2.EditPromptResponse),
    ):
        accepted: Any = {"request_id": "mine", "num_steps": 4, "warnings": ["cut"]}
        timings = {"total_seconds": 2.0}
        for event in [{"accepted": accepted}, *[{"image": image}] * 2, {"done": {"timings": timings}}]:
            result.add(kind(**event))  # type: ignore[arg-type]
        assert (result.request_id, result.num_steps, result.warnings) == ("mine", 4, ["cut"])
        assert [made.data for made in result.images] == [b"png"]
        assert result.timings.total_seconds == 2.0
