"""Metrics, traces and logs of the running services: what an operator sees of a request."""

import asyncio
import json
import re
import secrets
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sfumato_protos.v1 import gateway_pb2, gateway_pb2_grpc

from sfumato_client import AsyncClient
from sfumato_client.stack import Service, Stack, local_stack
from tests.collector import Collector, Span, running_collector
from tests.tiny_family import save_tiny_family

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
GENERATE = "/sfumato.v1.GatewayService/Generate"
MODEL_SERVICES = ("EncoderService", "DenoiserService", "DecoderService")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def observed(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All services, the editor too, with metrics, and spans to the collector."""
    folder = tmp_path_factory.mktemp("observed")
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.target}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "SFUMATO_EDITOR_STATE_DIR": str(folder / "state"),
    }
    for name in ("ENCODER", "DECODER", "DENOISER"):
        settings |= {f"SFUMATO_{name}_ENGINE": "torch", f"SFUMATO_{name}_NUM_THREADS": "1"}
    family = save_tiny_family(folder / "tiny")
    with local_stack(family, log_dir=folder, editor=True, metrics=True, settings=settings) as running:
        yield running


@pytest.fixture
async def observed_client(observed: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(observed.target, timeout=200) as opened:
        yield opened


async def generate(stack: Stack, metadata: dict[str, str], **fields: Any) -> list[Any]:
    """A request with metadata of its own, as any gRPC client may send it."""
    async with grpc.aio.insecure_channel(stack.target) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        # Each time another text: the gateway keeps what was encoded.
        request = gateway_pb2.GenerateRequest(prompt=f"a cat {secrets.token_hex(4)}", **fields)
        return [
            event async for event in stub.Generate(request, metadata=tuple(metadata.items()), timeout=200)
        ]


async def until(found: Any, seconds: float = 60.0) -> Any:
    """What `found` gives once it is true; spans and log lines come a little later than answers."""
    end = asyncio.get_running_loop().time() + seconds
    while not (value := found()):
        assert asyncio.get_running_loop().time() < end, "it never came"
        await asyncio.sleep(0.1)
    return value


def lines(service: Service, **wanted: str) -> list[dict[str, Any]]:
    """The JSON lines of a service's log with these values."""
    rows = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def scraped(service: Service) -> tuple[set[str], dict[str, set[tuple[tuple[str, str], ...]]]]:
    """The families at a service's metrics port, and the labels of each sample by its name."""
    url = f"http://127.0.0.1:{service.metrics_port}/metrics"
    text = urllib.request.urlopen(url, timeout=20).read().decode()
    families = {
        name for name in re.findall(r"^# TYPE (\w+) \w+", text, re.MULTILINE) if not name.endswith("_created")
    }
    samples: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    for name, labels in re.findall(r"^(sfumato_\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        samples.setdefault(name, set()).add(tuple(re.findall(r'(\w+)="([^"]*)"', labels)))
    return families, samples


def ancestors(span: Span, spans: list[Span]) -> list[str]:
    """Names from the span's parent to the last that was exported, then the id of the caller's span."""
    by_id = {other.span_id: other for other in spans}
    names = []
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        names.append(span.name)
    return [*names, span.parent_id]


async def test_one_trace_from_the_client_to_each_step_of_the_denoiser(
    observed: Stack, collector: Collector
) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    await generate(observed, {"traceparent": f"00-{trace_id}-{caller}-01"}, num_inference_steps=5)

    def whole() -> list[Span]:
        spans = collector.of(trace_id)
        return spans if {f"sfumato.v1.{name}" for name in MODEL_SERVICES} < {s.service for s in spans} else []

    await until(whole)
    await until(lambda: any(span.name.endswith("/Denoise") for span in collector.of(trace_id)))
    await until(lambda: any(span.name.endswith("/Generate") for span in collector.of(trace_id)))
    spans = collector.of(trace_id)
    steps = [span for span in spans if span.name == "unet.step"]
    assert len(steps) == 5
    assert {step.attributes["rows"] for step in steps} == {"2"}
    for step in steps:
        assert ancestors(step, spans) == [
            "sfumato.v1.DenoiserService/Denoise", "denoise", "sfumato.v1.GatewayService/Generate", caller,
        ]  # fmt: skip
    stages = {span.name for span in spans if span.service == "sfumato.v1.GatewayService"}
    assert stages == {"sfumato.v1.GatewayService/Generate", "encode_text", "denoise", "decode"}
    assert all(0 <= span.seconds < 300 for span in spans)
    assert "a cat" not in str(spans)  # prompts are nobody's but the client's


async def test_each_log_line_of_a_request_has_its_ids(observed: Stack) -> None:
    trace_id, given = secrets.token_hex(16), f"mine-{secrets.token_hex(4)}"
    metadata = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01", "x-request-id": given}
    events = await generate(observed, metadata, num_inference_steps=2)
    assert events[0].accepted.request_id == given
    for service in (observed.gateway, observed.encoder, observed.decoder, *observed.denoisers):
        (*_, line) = await until(lambda service=service: lines(service, event="call", request_id=given))
        assert line["trace_id"] == trace_id
        assert not lines(service, trace_id=trace_id, request_id="")
        assert {row["request_id"] for row in lines(service, trace_id=trace_id)} == {given}


async def test_ids_are_made_where_the_client_has_none(observed: Stack) -> None:
    events = await generate(observed, {"x-request-id": "not valid!"}, num_inference_steps=1)
    made = events[0].accepted.request_id
    assert re.fullmatch("[0-9a-f]{32}", made)
    (line,) = await until(lambda: lines(observed.gateway, event="call", request_id=made))
    assert re.fullmatch("[0-9a-f]{32}", line["trace_id"])
    (other, *_) = await until(lambda: lines(observed.denoisers[0], event="call", request_id=made))
    assert other["trace_id"] == line["trace_id"]


async def test_a_refusal_is_logged_and_traced_with_the_same_ids(
    observed: Stack, collector: Collector
) -> None:
    trace_id = secrets.token_hex(16)
    with pytest.raises(grpc.aio.AioRpcError):
        await generate(observed, {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}, num_images=99)
    (refused,) = await until(lambda: lines(observed.gateway, event="refused", trace_id=trace_id))
    (span,) = await until(lambda: collector.of(trace_id))
    assert span.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert span.attributes["sfumato.request_id"] == refused["request_id"]


async def test_an_edit_goes_on_in_the_trace_of_its_request(
    observed: Stack, observed_client: AsyncClient, collector: Collector
) -> None:
    name = f"edit-{secrets.token_hex(4)}"
    options: Any = {"prompts": ["a cat"], "num_iterations": 3, "num_cutouts": 2}
    operation = await observed_client.start_edit("deep-image-prior", request_id=name, **options)
    await observed_client.wait_operation(operation.name)
    (line, *_) = await until(lambda: lines(observed.gateway, event="call", request_id=name))
    chunk = await until(
        lambda: [span for span in collector.of(line["trace_id"]) if span.name == "edit.chunk"]
    )
    assert ancestors(chunk[0], collector.of(line["trace_id"]))[:2] == [
        "sfumato.v1.EditorService/Edit", "sfumato.v1.EditorService/Edit",
    ]  # fmt: skip
    _, samples = scraped(observed.editor)  # type: ignore[arg-type]
    ended = (("method", "deep-image-prior"), ("state", "succeeded"))
    assert ended in samples["sfumato_editor_edits_ended_total"]
    assert "sfumato_editor_iteration_seconds_count" in samples


async def test_each_service_has_the_metrics_that_the_page_says(
    observed: Stack, observed_client: AsyncClient
) -> None:
    await observed_client.generate("a cat", num_inference_steps=2, guidance="cfg+clip", num_cutouts=2)
    page = {
        name.removesuffix("_total"): services
        for name, services in re.findall(
            r"^\| `(sfumato_\w+)` \|[^|]*\|[^|]*\| ([^|]+) \|", PAGE.read_text(), re.MULTILINE
        )
    }
    for service in observed.services:
        kind = service.name.rstrip("0123456789")
        families, samples = scraped(service)
        documented = {name for name, services in page.items() if services == "all" or kind in services}
        served = {name.removesuffix("_total") for name in families if name.startswith("sfumato_")}
        sampled = {re.sub("_(total|bucket|count|sum|created)$", "", name) for name in samples}
        assert documented <= served, kind
        assert sampled <= documented, kind
        assert "process_resident_memory_bytes" in families


async def test_what_a_client_makes_up_becomes_no_label(observed: Stack) -> None:
    made_up = f"/sfumato.v1.GatewayService/Method{secrets.token_hex(4)}"
    async with grpc.aio.insecure_channel(observed.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(made_up)(b"", timeout=20, metadata=(("x-request-id", "made-up-id"),))
    _, samples = scraped(observed.gateway)
    values = {value for labels in samples.values() for label in labels for _, value in label}
    assert not {value for value in values if "made-up" in value or made_up in value}
    assert GENERATE in values
