"""All services with everything on: mutual TLS, credentials of several tenants, an editor, the tiny family."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from sfumato_client import Client
from sfumato_client.stack import Service, Stack, local_stack
from tests.certificates import Authority, Identity, mutual_tls
from tests.tiny_family import save_tiny_family

# Name to tenant and scopes; the key of each is sfu_test_{name}.
KEYS = {
    "acme": ("acme", ["generate", "edit"]),
    "globex": ("globex", ["generate", "edit"]),
    "scopeless": ("acme", []),
    "generator": ("acme", ["generate"]),
    "editor": ("acme", ["edit"]),
    "admin": ("operators", ["admin"]),
    "tight": ("tight", ["generate"]),
}
WIDE = {"concurrent_requests": 1000, "requests_per_minute": 10_000_000}
# Nothing that a request asks for takes long.
SMALL_LIMITS = {
    "SFUMATO_GATEWAY_MAX_NUM_INFERENCE_STEPS": "4",
    "SFUMATO_GATEWAY_MAX_NUM_IMAGES": "2",
    "SFUMATO_GATEWAY_MAX_PIXELS": str(64 * 64),
    "SFUMATO_GATEWAY_MAX_INPUT_PIXELS": str(256 * 256),
    "SFUMATO_EDITOR_MAX_NUM_ITERATIONS": "50",
    "SFUMATO_EDITOR_MAX_PIXELS": str(64 * 64),
    "SFUMATO_EDITOR_MAX_QUEUED_EDITS": "50",
    "SFUMATO_EDITOR_CHECKPOINT_SECONDS": "1",
}


def key_of(name: str) -> str:
    """The clear key."""
    return f"sfu_test_{name}"


def credentials_json() -> dict[str, Any]:
    """The credentials file of these tests."""
    keys = [
        {"id": name, "sha256": hashlib.sha256(key_of(name).encode()).hexdigest(), "tenant": tenant,
         "scopes": scopes}
        for name, (tenant, scopes) in KEYS.items()
    ]  # fmt: skip
    quotas = {"tight": {"concurrent_requests": 1, "requests_per_minute": 3}}
    return {"keys": keys, "quotas": quotas, "default_quota": WIDE}


@dataclass
class Secured:
    """The running services and what opens them."""

    stack: Stack
    authority: Authority
    identities: dict[str, Identity]

    @property
    def ca(self) -> Path:
        """Checks every server."""
        return self.identities["gateway"].ca

    def pems(self) -> list[bytes]:
        """CA, key and certificate that the gateway has for the services behind it."""
        gateway = self.identities["gateway"]
        return [path.read_bytes() for path in (gateway.ca, gateway.key, gateway.cert)]

    def channel(self, service: Service | None = None) -> grpc.Channel:
        """To the gateway; or, with the gateway's certificate, to a service behind it."""
        parts = self.pems()
        credentials = grpc.ssl_channel_credentials(*(parts if service else parts[:1]))
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        return grpc.secure_channel((service or self.stack.gateway).target, credentials, options)

    def client(self, name: str, timeout: float = 60) -> Client:
        """A client with that key."""
        return Client(self.stack.target, timeout, tls_ca=self.ca, api_key=key_of(name))

    def logs(self) -> str:
        """What all services logged so far."""
        return "\n".join(service.log.read_text(errors="replace") for service in self.stack.services)


@contextlib.contextmanager
def running_secured(folder: Path) -> Iterator[Secured]:
    """Runs them until the block ends."""
    authority = Authority.new("first")
    identities, settings = mutual_tls(folder / "pki", authority)
    credentials = folder / "credentials.json"
    credentials.write_text(json.dumps(credentials_json()))
    settings |= {
        **SMALL_LIMITS,
        "SFUMATO_GATEWAY_REFLECTION": "false",
        "SFUMATO_EDITOR_STATE_DIR": str(folder / "state"),
        "SFUMATO_EDITOR_NUM_THREADS": "1",
        "SFUMATO_GATEWAY_CREDENTIALS_FILE": str(credentials),
    }
    for name in ("ENCODER", "DECODER", "DENOISER"):
        settings |= {f"SFUMATO_{name}_ENGINE": "torch", f"SFUMATO_{name}_NUM_THREADS": "1"}
    family = save_tiny_family(folder / "tiny")
    with local_stack(family, log_dir=folder, editor=True, settings=settings) as stack:
        yield Secured(stack, authority, identities)
