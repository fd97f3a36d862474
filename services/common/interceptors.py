"""The one interceptor of every service: request id, trace, deadline, metrics, log line, errors to status."""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog

from sfumato.common import calls, tracing
from sfumato.common.errors import SfumatoError, Unavailable
from sfumato.common.metrics import REQUEST_SECONDS, REQUESTS, RUNNING
from sfumato.common.status import ForwardedError, abort

log = structlog.get_logger()

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
        return self._wrap(handler, method, metadata)

    def _wrap(self, handler: Any, method: str, metadata: Mapping[str, str | bytes]) -> Any:
        async def unary(request: Any, context: calls.Context) -> Any:
            async with self._call(method, metadata, context):
                return await handler.unary_unary(request, context)

        async def stream(request: Any, context: calls.Context) -> AsyncIterator[Any]:
            behaviour = handler.stream_stream or handler.unary_stream
            async with self._call(method, metadata, context):
                async for response in behaviour(request, context):
                    yield response

        codec = (handler.request_deserializer, handler.response_serializer)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(stream, *codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(stream, *codec)
        return grpc.unary_unary_rpc_method_handler(unary, *codec)

    @asynccontextmanager
    async def _call(
        self, method: str, metadata: Mapping[str, str | bytes], context: calls.Context
    ) -> AsyncIterator[None]:
        given = str(metadata.get(calls.REQUEST_ID_KEY, ""))
        calls.request_id.set(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        span = tracing.begin(method, metadata)
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
            log.info("refused", method=method, error=error.message)
            await abort(context, error)
        except Exception:
            code = "INTERNAL"
            log.exception("failed", method=method)
            await abort(
                context, SfumatoError(f"{method} failed; the log has request {calls.request_id.get()}")
            )
        finally:
            elapsed = time.monotonic() - start
            RUNNING.labels(method).dec()
            REQUESTS.labels(method, code).inc()
            REQUEST_SECONDS.labels(method, code).observe(elapsed)
            tracing.end(span, code)
            log.info("call", method=method, code=code, seconds=round(elapsed, 4))
