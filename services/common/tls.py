"""TLS of servers and channels. Replaced certificate files are used from the next connection on."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from sfumato.common.certificates import Pems, TlsFiles
from sfumato.common.watched import WatchedFiles

# How long calls of a channel with replaced certificates may go on, in seconds: an edit is watched for hours.
GRACE_SECONDS = 86_400.0


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files; with a CA, clients must show a certificate of its."""
    watched = files.watched()
    given = watched.current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        now = watched.current()
        if now is given:
            return None
        given = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        fetch,  # type: ignore[arg-type]  # None, for no change, is as documented
        require_client_authentication=files.ca is not None,
    )


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    assert pems.key is not None
    assert pems.cert is not None
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.cert)], pems.ca)


def open_channel(target: str, options: Sequence[tuple[str, Any]], files: TlsFiles | None) -> Any:
    """A grpc.aio channel, or what stubs take for one: with files, one that follows their replacement."""
    if files is None:
        return grpc.aio.insecure_channel(target, options)
    return RotatingChannel(target, options, files.watched())


class RotatingChannel:
    """A channel that is opened anew when its certificates are replaced. Running calls end on the old one."""

    def __init__(
        self, target: str, options: Sequence[tuple[str, Any]], watched: "WatchedFiles[Pems]"
    ) -> None:
        self._target, self._options, self._watched = target, options, watched
        self._given: Pems | None = None
        self._channel: grpc.aio.Channel | None = None
        self._generation = 0
        self._closing: set[asyncio.Task[None]] = set()

    def unary_unary(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """As grpc.aio.Channel has it."""
        return self._callable("unary_unary", method, codec)

    def unary_stream(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """As grpc.aio.Channel has it."""
        return self._callable("unary_stream", method, codec)

    def stream_unary(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """As grpc.aio.Channel has it."""
        return self._callable("stream_unary", method, codec)

    def stream_stream(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """As grpc.aio.Channel has it."""
        return self._callable("stream_stream", method, codec)

    def _callable(self, kind: str, method: Any, codec: Any) -> Callable[..., Any]:
        made: tuple[int, Any] = (-1, None)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            channel = self._current()
            if made[0] != self._generation:
                made = (self._generation, getattr(channel, kind)(*method, **codec))
            return made[1](*arguments, **options)

        return call

    def _current(self) -> grpc.aio.Channel:
        pems = self._watched.current()
        if self._channel is None or pems is not self._given:
            if self._channel is not None:
                task = asyncio.ensure_future(self._channel.close(GRACE_SECONDS))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            credentials = grpc.ssl_channel_credentials(pems.ca, pems.key, pems.cert)
            self._channel = grpc.aio.secure_channel(self._target, credentials, self._options)
            self._given = pems
            self._generation += 1
        return self._channel

    async def close(self) -> None:
        """Closes it; running calls are cancelled."""
        for task in self._closing:
            task.cancel()
        if self._channel is not None:
            await self._channel.close()
