"""The one interceptor of every service: request id, deadline, metrics, log line, errors to status."""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from prometheus_client import Counter, Gauge, Histogram

from sfumato.common import calls
from sfumato.common.errors import SfumatoError, Unavailable
from sfumato.common.status import ForwardedError, abort

log = structlog.get_logger()

REQUESTS = Counter("sfumato_requests", "Calls by method and status code.", ["method", "code"])
SECONDS = Histogram(
    "sfumato_request_seconds",
    "Wall-clock seconds of a call.",
    ["method"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
RUNNING = Gauge("sfumato_requests_running", "Calls under way.", ["method"])

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of what the services do; health and reflection pass by."""

    def __init__(self, ready: asyncio.Event) -> None:
        self._ready = ready

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(("/sfumato.", "/google.longrunning.")):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        return self._wrap(handler, method, str(metadata.get(calls.REQUEST_ID_KEY, "")))

    def _wrap(self, handler: Any, method: str, request_id: str) -> Any:
        async def unary(request: Any, context: calls.Context) -> Any:
            async with self._call(method, request_id, context):
                return await handler.unary_unary(request, context)

        async def stream(request: Any, context: calls.Context) -> AsyncIterator[Any]:
            behaviour = handler.stream_stream or handler.unary_stream
            async with self._call(method, request_id, context):
                async for response in behaviour(request, context):
                    yield response

        codec = (handler.request_deserializer, handler.response_serializer)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(stream, *codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(stream, *codec)
        return grpc.unary_unary_rpc_method_handler(unary, *codec)

    @asynccontextmanager
    async def _call(self, method: str, request_id: str, context: calls.Context) -> AsyncIterator[None]:
        valid = _REQUEST_ID.fullmatch(request_id)
        calls.request_id.set(request_id if valid else uuid.uuid4().hex)
        seconds = context.time_remaining()
        start = time.monotonic()
        calls.deadline.set(None if seconds is None else start + seconds)
        code = "OK"
        RUNNING.labels(method).inc()
        try:
            if not self._ready.is_set():
                raise Unavailable(f"{method} is not ready: its model is loading or it is draining")
            yield
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except grpc.aio.AbortError:
            code = "ABORTED"
            raise
        except SfumatoError as error:
            code = error.grpc_code.name if isinstance(error, ForwardedError) else error.code
            log.info("refused", method=method, request_id=calls.request_id.get(), error=error.message)
            await abort(context, error)
        except Exception:
            code = "INTERNAL"
            log.exception("failed", method=method, request_id=calls.request_id.get())
            await abort(
                context, SfumatoError(f"{method} failed; the log has request {calls.request_id.get()}")
            )
        finally:
            elapsed = time.monotonic() - start
            RUNNING.labels(method).dec()
            REQUESTS.labels(method, code).inc()
            SECONDS.labels(method).observe(elapsed)
            request = calls.request_id.get()
            log.info("call", method=method, code=code, seconds=round(elapsed, 4), request_id=request)
