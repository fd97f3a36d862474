"""What all calls share: channel, deadline, streams that are joined again, failures as SfumatoErrors."""

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from google.longrunning import operations_pb2_grpc
from sfumato_protos.v1 import editor_pb2_grpc, gateway_pb2_grpc

from sfumato_client.errors import CLIENT_CLOSED, SfumatoError, from_rpc_error
from sfumato_client.rejoin import Stream
from sfumato_client.security import (
    KeyedChannel,
    SecurityOptions,
    channel_credentials,
    is_loopback,
    token_of,
)

TIMEOUT_SECONDS = 300.0
MAX_MESSAGE_BYTES = 64 * 2**20
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A gateway that comes back is found soon.
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class _Connected:
    """A channel, its stubs, and whether close() was called; library: grpc or grpc.aio."""

    def __init__(self, library: Any, target: str, timeout: float, security: SecurityOptions) -> None:
        self.timeout = checked_timeout(timeout)
        self._library, self._target = library, target
        self._credentials, self._token = channel_credentials(security), token_of(target, security)
        self._is_closed = False

    @functools.cached_property
    def _channel(self) -> Any:
        """Made when it is needed: one of grpc.aio belongs to the event loop that runs then."""
        # A proxy of the environment's would see the key, which goes to this machine in clear.
        options = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not is_loopback(self._target))))
        channel = (
            self._library.secure_channel(self._target, self._credentials, options)
            if self._credentials
            else self._library.insecure_channel(self._target, options)
        )
        return KeyedChannel(channel, self._token) if self._token else channel

    @functools.cached_property
    def _gateway(self) -> Any:
        return gateway_pb2_grpc.GatewayServiceStub(self._channel)

    @functools.cached_property
    def _editor(self) -> Any:
        return editor_pb2_grpc.EditorServiceStub(self._channel)

    @functools.cached_property
    def _operations(self) -> Any:
        return operations_pb2_grpc.OperationsStub(self._channel)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Around a call: what gRPC raises becomes a SfumatoError.

        Of calls that close() ended, or that come after it, gRPC raises several things, asyncio.CancelledError
        among them, with which a task that nobody cancelled would end in silence.
        """
        try:
            yield
        except (grpc.RpcError, grpc.aio.UsageError, ValueError, asyncio.CancelledError) as error:
            if self._is_closed and not _task_is_cancelled():
                raise SfumatoError("CANCELLED", "the client was closed", reason=CLIENT_CLOSED) from error
            if isinstance(error, grpc.RpcError):
                raise from_rpc_error(error) from error
            raise


class Calls(_Connected):
    """Calls that block. A context manager; safe to share between threads."""

    def __init__(
        self, target: str, timeout: float = TIMEOUT_SECONDS, **security: Unpack[SecurityOptions]
    ) -> None:
        """
        Args:
            target: "host:port" of the gateway.
            timeout: deadline of each call over all of its attempts, in seconds, above 0. Default 300.
            security: TLS and key; see SecurityOptions. Default: plaintext, no key.
        """
        super().__init__(grpc, target, timeout, security)
        # Now, and not by the first call, which may be several threads'.
        _ = self._gateway, self._editor, self._operations

    def _call(self, method: Any, request: Any, timeout: float | None = None) -> Any:
        with self._failures():
            return method(request, timeout=timeout or self.timeout)

    def _events(self, method: Any, stream: Stream) -> Generator[Any]:
        """The events of a stream; what `stream` wants is joined again."""
        while True:
            call = None
            try:
                with self._failures():
                    call = method(stream.sent, timeout=stream.timeout)
                    for event in call:
                        stream.saw(event)
                        yield event
                return
            except SfumatoError as error:
                wait = stream.wait_seconds(error)
            finally:
                if call is not None:
                    call.cancel()
            time.sleep(wait)

    def close(self) -> None:
        """Closes the channel; running calls, also of other threads, raise SfumatoError "CANCELLED"."""
        self._is_closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncCalls(_Connected):
    """Calls that are awaited. An async context manager, of one event loop."""

    def __init__(
        self, target: str, timeout: float = TIMEOUT_SECONDS, **security: Unpack[SecurityOptions]
    ) -> None:
        """As `Client`."""
        super().__init__(grpc.aio, target, timeout, security)

    async def _call(self, method: Any, request: Any, timeout: float | None = None) -> Any:
        with self._failures():
            return await method(request, timeout=timeout or self.timeout)

    async def _events(self, method: Any, stream: Stream) -> AsyncGenerator[Any]:
        """As of Calls; cancelling the task ends the stream, too."""
        while True:
            call = None
            try:
                with self._failures():
                    call = method(stream.sent, timeout=stream.timeout)
                    async for event in call:
                        stream.saw(event)
                        yield event
                return
            except SfumatoError as error:
                wait = stream.wait_seconds(error)
            finally:
                if call is not None:
                    call.cancel()
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Closes the channel; running calls, also of other tasks, raise SfumatoError "CANCELLED"."""
        self._is_closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _task_is_cancelled() -> bool:
    """Whether this runs in a task that somebody cancelled."""
    with contextlib.suppress(RuntimeError):  # no event loop
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return False


def checked_timeout(seconds: float) -> float:
    """
    Raises:
        ValueError: not above 0 and finite: gRPC takes NaN and infinity for a deadline that is over.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout must be above 0 and finite, in seconds, but is {seconds}")
    return seconds
