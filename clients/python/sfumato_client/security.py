"""How a client reaches a gateway that demands TLS, a key, or both."""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import grpc

KEY = re.compile("[!-~]+")


class SecurityOptions(TypedDict, total=False):
    """Keyword arguments of `Client` and `AsyncClient`. Default: plaintext, no key."""

    tls: bool  # TLS, the gateway's certificate checked by the system's CAs
    tls_ca: str | Path  # TLS, its certificate checked by this CA, PEM
    tls_cert: str | Path  # certificate that this client shows (mutual TLS), PEM
    tls_key: str | Path  # its private key, PEM
    api_key: str | Callable[[], str]  # API key or JWT, or what gives a fresh one for each call


def channel_credentials(options: SecurityOptions) -> grpc.ChannelCredentials | None:
    """What opens the channel; None: plaintext.

    Raises:
        OSError, ValueError: a file is missing, or a certificate is given without its key or without TLS.
    """
    cert, key = options.get("tls_cert"), options.get("tls_key")
    if (cert is None) != (key is None):
        raise ValueError("tls_cert and tls_key must be given together")
    ca = options.get("tls_ca")
    if ca is None and not options.get("tls"):
        if cert is not None:
            raise ValueError("tls_cert needs tls_ca, or tls for the system's CAs")
        return None
    cert_bytes, key_bytes, ca_bytes = (
        None if path is None else Path(path).read_bytes() for path in (cert, key, ca)
    )
    return grpc.ssl_channel_credentials(ca_bytes, key_bytes, cert_bytes)


def token_of(target: str, options: SecurityOptions) -> Callable[[], str] | None:
    """What gives the key of a call; None: there is none.

    Raises:
        ValueError: the key cannot be sent, or would travel in clear to another machine.
    """
    key = options.get("api_key")
    if not key:
        return None
    if not (options.get("tls") or options.get("tls_ca")) and not is_loopback(target):
        raise ValueError(f"the API key would travel in clear to {target}: give tls_ca, or tls=True")
    if callable(key):
        return key
    check_key(key)
    return lambda: key


def check_key(key: str) -> str:
    """gRPC's own error has the key in it, which would go to logs.

    Raises:
        ValueError: it cannot be sent.
    """
    if not KEY.fullmatch(key):
        raise ValueError("api_key must be of visible ASCII characters: no spaces, no end of line")
    return key


def is_loopback(target: str) -> bool:
    """Whether host:port, or a unix socket, is on this machine."""
    if target.startswith("unix:"):
        return True
    host = target.rpartition(":")[0].strip("[]") or target
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class KeyedChannel:
    """A channel whose calls carry a bearer token."""

    def __init__(self, channel: Any, token: Callable[[], str]) -> None:
        self._channel, self._token = channel, token

    def unary_unary(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """As grpc.Channel has it."""
        return self._keyed(self._channel.unary_unary(*method, **codec))

    def unary_stream(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """As grpc.Channel has it."""
        return self._keyed(self._channel.unary_stream(*method, **codec))

    def stream_unary(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """As grpc.Channel has it."""
        return self._keyed(self._channel.stream_unary(*method, **codec))

    def stream_stream(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """As grpc.Channel has it."""
        return self._keyed(self._channel.stream_stream(*method, **codec))

    def _keyed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def keyed(*arguments: Any, metadata: Any = (), **options: Any) -> Any:
            bearer = ("authorization", f"Bearer {check_key(self._token())}")
            return call(*arguments, metadata=(*(metadata or ()), bearer), **options)

        return keyed

    def close(self, *grace: Any) -> Any:
        """As the channel has it."""
        return self._channel.close(*grace)
