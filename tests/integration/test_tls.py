"""TLS and mutual TLS: who is refused, and certificates replaced under load."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from sfumato_protos.v1 import denoiser_pb2, denoiser_pb2_grpc

from sfumato_client import AsyncClient, Client, SfumatoError
from sfumato_client.stack import is_serving
from tests.certificates import Authority
from tests.secured import Secured, key_of


def denoiser_code(secured: Secured, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """How a direct call to the denoiser ends."""
    target = secured.stack.denoisers[0].target
    channel = grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target)
    with channel:
        stub: Any = denoiser_pb2_grpc.DenoiserServiceStub(channel)
        try:
            stub.GetDenoiserInfo(denoiser_pb2.GetDenoiserInfoRequest(), timeout=10)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_a_model_service_answers_only_certificates_of_its_ca(secured: Secured) -> None:
    ca = secured.authority.pem
    cert, key = secured.authority.issue("gateway")
    strangers_cert, strangers_key = Authority.new("stranger").issue("gateway")
    assert denoiser_code(secured, grpc.ssl_channel_credentials(ca, key, cert)) is grpc.StatusCode.OK
    stranger = grpc.ssl_channel_credentials(ca, strangers_key, strangers_cert)
    for refused in (None, grpc.ssl_channel_credentials(ca), stranger):
        assert denoiser_code(secured, refused) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("security", [{}, {"tls": True}, {"tls_ca": "stranger"}])
def test_a_client_without_the_right_ca_gets_nothing(
    secured: Secured, tmp_path: Path, security: dict[str, Any]
) -> None:
    if "tls_ca" in security:
        security = {"tls_ca": tmp_path / "stranger.pem"}
        security["tls_ca"].write_bytes(Authority.new("stranger").pem)
    with Client(secured.stack.target, timeout=5, **security) as client:
        with pytest.raises(SfumatoError) as error:
            client.list_families()
        assert error.value.code == "UNAVAILABLE"


def test_images_and_edits_come_over_tls(secured: Secured) -> None:
    with secured.client("acme") as client:
        assert client.generate("a cat", num_inference_steps=2).images
        assert "vqgan-clip" in client.list_families()[0].methods


def test_the_command_takes_the_ca(secured: Secured) -> None:
    command = [str(Path(sys.executable).parent / "sfumato"), "--tls-ca", secured.ca]
    environment = {**os.environ, "SFUMATO_TARGET": secured.stack.target, "SFUMATO_API_KEY": key_of("acme")}
    ran = subprocess.run([*command, "models"], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "families/tiny" in ran.stdout


def test_health_alone_is_open_to_probes(secured: Secured) -> None:
    service = secured.stack.denoisers[0]
    assert is_serving(service.health_target)
    with grpc.insecure_channel(service.health_target) as channel:
        stub: Any = denoiser_pb2_grpc.DenoiserServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.GetDenoiserInfo(denoiser_pb2.GetDenoiserInfoRequest(), timeout=10)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def shown_certificate(target: str) -> bytes:
    """The certificate that a server shows now, DER."""
    import ssl

    host, _, port = target.partition(":")
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port)), timeout=10))


async def test_replaced_certificates_and_cas_are_used_without_a_failed_request(secured: Secured) -> None:
    """Eight clients at a time, a new connection for each request, while all files change three times."""
    stack, identities = secured.stack, secured.identities
    successor = Authority.new("second")
    both = secured.authority.pem + successor.pem
    done, stop = 0, asyncio.Event()
    expected: set[bytes] = set()

    async def ask() -> None:
        nonlocal done
        while not stop.is_set():
            async with AsyncClient(stack.target, 60, tls_ca=trusted, api_key=key_of("acme")) as client:
                result = await client.generate("a cat", seed=1, num_inference_steps=2)
                expected.add(result.images[0].data)
                done += 1

    trusted = identities["gateway"].folder / "both.pem"
    trusted.write_bytes(both)
    before = shown_certificate(stack.target)
    load = [asyncio.ensure_future(ask()) for _ in range(8)]
    # As an operator replaces a CA: both are trusted, then new certificates, then the old CA is dropped.
    for authority, ca in ((secured.authority, both), (successor, both), (successor, successor.pem)):
        for name, identity in identities.items():
            identity.write(authority, name, ca)
        since, end = done, time.monotonic() + 120
        await asyncio.sleep(2.5)  # the files are looked at once a second
        while done < since + 16:
            assert time.monotonic() < end
            assert not any(task.done() for task in load), [task for task in load if task.done()]
            await asyncio.sleep(0.1)
    stop.set()
    await asyncio.gather(*load)
    assert len(expected) == 1
    assert shown_certificate(stack.target) != before
    # The old CA is no longer taken, by the gateway's channels neither.
    cert, key = secured.authority.issue("gateway")
    old = grpc.ssl_channel_credentials(successor.pem, key, cert)
    assert await asyncio.to_thread(denoiser_code, secured, old) is grpc.StatusCode.UNAVAILABLE
    log = stack.gateway.log.read_text()
    assert "files read again" in log
