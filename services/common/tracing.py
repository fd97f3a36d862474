"""Traces: the W3C trace context through the services, and OpenTelemetry spans where OTEL_* asks for them.

Without an exporter the spans cost nothing, and the trace id still travels, so that every log line has it.
opentelemetry-instrumentation-grpc (0.66b2) is not used: it puts a generator of responses in the place of a
stream's call, which the gateway reads and writes itself, and it records errors' texts, which may quote a
prompt. What is needed of it is two metadata entries.
"""

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sfumato.common.errors import SfumatoError

request_id: ContextVar[str] = ContextVar("request_id", default="")
# Codes that are the server's failures, by OpenTelemetry's conventions for gRPC.
FAILURES = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}

_w3c = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("sfumato")


def configure(service: str) -> Callable[[], None]:
    """Exports spans by OTLP/gRPC where OTEL_EXPORTER_OTLP_ENDPOINT, or ..._TRACES_ENDPOINT, is set.

    Returns:
        What sends the last spans when the service ends.

    Raises:
        SfumatoError: OTEL_* asks for another exporter or protocol.
    """
    if not _wanted(os.environ):
        return lambda: None
    # Only here: a service without traces loads nothing of it.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _wanted(environment: Mapping[str, str]) -> bool:
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        raise SfumatoError(f"OTEL_TRACES_EXPORTER must be otlp or none, but is {exporter}")
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if exporter == "" and not any(environment.get(name) for name in names):
        return False
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if (protocol := environment.get(name, "grpc")) != "grpc":
            raise SfumatoError(f"{name} must be grpc, but is {protocol}")
    return True


def begin(method: str, metadata: Mapping[str, str | bytes]) -> Span:
    """The span of a call, current from here to its task's end; a child of the caller's, if that has one."""
    carrier = {key: str(metadata[key]) for key in ("traceparent", "tracestate") if key in metadata}
    parent = _w3c.extract(carrier)
    service, _, name = method.lstrip("/").rpartition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    span = _tracer.start_span(method.lstrip("/"), parent, SpanKind.SERVER, attributes)
    if not span.get_span_context().is_valid:  # no exporter, and none before us
        span = NonRecordingSpan(SpanContext(secrets.randbits(128), secrets.randbits(64), is_remote=False))
    context.attach(trace.set_span_in_context(span, parent))
    return span


def end(span: Span, code: str) -> None:
    """Ends a call's span. code: the gRPC status's name."""
    span.set_attribute("rpc.response.status_code", code)
    span.set_attribute("sfumato.request_id", request_id.get())
    if code in FAILURES:
        span.set_status(Status(StatusCode.ERROR, code))
    span.end()


@contextmanager
def span(name: str, **attributes: str | int | float) -> Iterator[None]:
    """A span around a block, where the call is traced; no more than a look at a variable where not.

    Its failure is told by the exception's type alone: messages may quote a prompt.
    """
    if not trace.get_current_span().is_recording():
        yield
        return
    before = context.get_current()
    opened = _tracer.start_span(name, attributes=attributes)
    context.attach(trace.set_span_in_context(opened))
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        opened.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        # Not detach: an asynchronous generator may be closed in another context than it ran in.
        context.attach(before)
        opened.end()


@contextmanager
def continued(
    name: str, of_request: str, traceparent: str, **attributes: str | int | float
) -> Iterator[None]:
    """A span around work that goes on after its call: the request's id and trace are current in the block."""
    before, id_before = context.get_current(), request_id.set(of_request)
    parent = _w3c.extract({"traceparent": traceparent})
    opened = _tracer.start_span(name, parent, attributes=attributes)
    context.attach(trace.set_span_in_context(opened, parent))
    try:
        yield
    finally:
        context.attach(before)
        request_id.reset(id_before)
        opened.end()


def headers() -> tuple[tuple[str, str], ...]:
    """Metadata that hands the current trace to another service."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    return tuple(carrier.items())


def traceparent() -> str:
    """The current trace in W3C's form, "" where there is none."""
    return dict(headers()).get("traceparent", "")


def trace_id() -> str:
    """32 hexadecimal digits, "" where there is no trace."""
    current = trace.get_current_span().get_span_context()
    return trace.format_trace_id(current.trace_id) if current.is_valid else ""
