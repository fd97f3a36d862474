"""The one interceptor of every service: caller, request id, trace, deadline, metrics, log line, status."""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from sfumato.common import audit, calls, tracing
from sfumato.common.admission import Admission
from sfumato.common.errors import InvalidArgument, SfumatoError, Unavailable
from sfumato.common.metrics import REQUEST_SECONDS, REQUESTS, RUNNING
from sfumato.common.open_inference import HEALTH
from sfumato.common.status import ForwardedError, abort

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Whoever may connect may ask for these: they tell nothing of any tenant.
OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")
# Asked for by every gateway every few seconds: no line of the log each time.
POLLED = ("/sfumato.v1.ModelService/ListModels",)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of what the services do; health and reflection pass by.

    A caller is identified before anything of the message is read.
    """

    def __init__(self, ready: asyncio.Event, admission: Admission, log_prompts: bool = False) -> None:
        self._ready, self._admission, self._log_prompts = ready, admission, log_prompts

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(OPEN):
            return handler
        metadata = tuple(handler_call_details.invocation_metadata or ())
        try:
            caller = self._admission.identify(method, metadata)
        except SfumatoError as error:
            return self._refusal(Call(method, dict(metadata), calls.Caller()), error)
        return self._wrap(handler, Call(method, dict(metadata), caller))

    def _refusal(self, call: "Call", error: SfumatoError) -> Any:
        async def refuse(messages: Any, context: calls.Context) -> AsyncIterator[bytes]:
            async with self._around(call, context):
                raise error
            yield b""

        # As a stream, whatever the method is: a stream's messages are read only when asked for.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _wrap(self, handler: Any, call: "Call") -> Any:
        parse = handler.request_deserializer or (lambda data: data)

        def parsed(data: bytes) -> Any:
            try:
                request = parse(data)
            except DecodeError as error:
                limit = f"the message that {call.method} takes"
                raise InvalidArgument("request", limit, f"{len(data)} bytes that are none") from error
            if self._log_prompts and isinstance(request, Message):
                call.texts += audit.texts_of(request)
            return request

        async def all_parsed(messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            async for data in messages:
                yield parsed(data)

        async def unary(data: bytes, context: calls.Context) -> Any:
            async with self._around(call, context):
                return await handler.unary_unary(parsed(data), context)

        async def stream(data: bytes, context: calls.Context) -> AsyncIterator[Any]:
            async with self._around(call, context):
                async for response in handler.unary_stream(parsed(data), context):
                    yield response

        async def streams(messages: AsyncIterator[bytes], context: calls.Context) -> AsyncIterator[Any]:
            async with self._around(call, context):
                async for response in handler.stream_stream(all_parsed(messages), context):
                    yield response

        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(streams, None, handler.response_serializer)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)

    @asynccontextmanager
    async def _around(self, call: "Call", context: calls.Context) -> AsyncIterator[None]:
        method = call.method
        given = str(call.metadata.get(calls.REQUEST_ID_KEY, ""))
        calls.request_id.set(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        calls.caller.set(call.caller)
        span = tracing.begin(method, call.metadata)
        # Now: of a call that is gone, grpc.aio has no peer, and asking for it ends the process.
        peer = context.peer()
        seconds = context.time_remaining()
        start = time.monotonic()
        calls.deadline.set(None if seconds is None else start + seconds)
        code = "OK"
        RUNNING.labels(method).inc()
        try:
            if not (self._ready.is_set() or method in HEALTH):
                loading = Unavailable(f"{method} is not ready: its model is loading or it is draining")
                loading.retry_seconds = 1.0
                raise loading
            with self._admission.admitted(call.caller):
                yield
        except (asyncio.CancelledError, GeneratorExit):  # the latter while an answer was being sent
            code = "CANCELLED"
            raise
        except grpc.aio.AbortError:
            code = "ABORTED"
            raise
        except SfumatoError as error:
            code = error.grpc_code.name if isinstance(error, ForwardedError) else error.code
            self._log_refusal(method, error)
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
            if method not in POLLED or code != "OK":
                audit.write(method, code, round(elapsed, 4), peer, call.texts)

    def _log_refusal(self, method: str, error: SfumatoError) -> None:
        """The message quotes what was given, which may be a prompt."""
        said = {"error": error.message} if self._log_prompts else {"field": error.field, "limit": error.limit}
        log.info("refused", method=method, reason=error.reason, **said)


@dataclass
class Call:
    """What is known of a call before its message, and the texts of its messages where they are logged."""

    method: str
    metadata: Mapping[str, str | bytes]
    caller: calls.Caller
    texts: list[str] = field(default_factory=list)
