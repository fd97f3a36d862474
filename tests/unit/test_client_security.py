"""How the client guards its key."""

from pathlib import Path

import pytest

from sfumato_client import Client
from sfumato_client.security import is_loopback


@pytest.mark.parametrize("target", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/socket"])
def test_this_machine_is_loopback(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize("target", ["10.0.0.1:50051", "gateway.example:443", "[2001:db8::1]:1", "gateway"])
def test_a_key_does_not_leave_this_machine_in_clear(target: str) -> None:
    with pytest.raises(ValueError, match="in clear"):
        Client(target, api_key="sfu_key")
    Client(target, api_key="sfu_key", tls=True).close()


def test_half_of_a_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="together"):
        Client("127.0.0.1:1", tls_cert=tmp_path)
    with pytest.raises(ValueError, match="needs tls_ca"):
        Client("127.0.0.1:1", tls_cert=tmp_path, tls_key=tmp_path)
