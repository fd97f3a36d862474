"""The trace context without an exporter; spans themselves are looked at in the running services."""

import secrets

import pytest
from opentelemetry import trace

from sfumato.common import logs, tracing
from sfumato.common.errors import SfumatoError

NAMES = (
    "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
)  # fmt: skip
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "off", [{}, {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}]
)
async def test_no_provider_is_made_unless_spans_are_asked_for(
    environment: pytest.MonkeyPatch, off: dict[str, str]
) -> None:
    for name, value in off.items():
        environment.setenv(name, value)
    tracing.configure("test")()
    tracing.begin("/sfumato.v1.Service/Method", {})
    assert not trace.get_current_span().is_recording()


@pytest.mark.parametrize(
    "wrong",
    [{"OTEL_TRACES_EXPORTER": "zipkin"}, {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}],
)
def test_an_exporter_that_is_not_here_is_refused_by_name(
    environment: pytest.MonkeyPatch, wrong: dict[str, str]
) -> None:
    for name, value in wrong.items():
        environment.setenv(name, value)
    with pytest.raises(SfumatoError, match=r"must be (otlp|grpc)"):
        tracing.configure("test")


async def test_a_callers_trace_goes_on_to_the_next_service() -> None:
    given = secrets.token_hex(16)
    tracing.begin("/s/M", {"traceparent": f"00-{given}-{secrets.token_hex(8)}-01", "tracestate": "a=b"})
    with tracing.span("stage"):
        sent = dict(tracing.headers())
    assert sent["traceparent"].split("-")[1] == tracing.trace_id() == given
    assert sent["tracestate"] == "a=b"


@pytest.mark.parametrize("broken", ["", "00-zz", f"00-{'0' * 32}-{'1' * 16}-01"])
async def test_a_trace_id_is_made_where_the_caller_sends_none_that_is_valid(broken: str) -> None:
    tracing.begin("/s/M", {"traceparent": broken})
    first = tracing.trace_id()
    tracing.begin("/s/M", {"traceparent": broken})
    assert len(first) == 32
    assert first != tracing.trace_id()


async def test_work_behind_its_call_has_the_calls_ids_for_as_long_as_it_lasts() -> None:
    tracing.begin("/s/M", {})
    submitted, id_then = tracing.traceparent(), tracing.trace_id()
    tracing.begin("/s/Other", {})
    with tracing.continued("chunk", "an-edit", submitted):
        line = logs.add_ids(None, "", {"event": "resumed"})
    assert line == {"event": "resumed", "request_id": "an-edit", "trace_id": id_then}
    assert tracing.trace_id() != id_then
    assert "request_id" not in logs.add_ids(None, "", {})
