"""Who may do what at the gateway: every RPC of the descriptors, without, with a wrong, with another's key."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.rpc import error_details_pb2, status_pb2

from sfumato.gateway.access import SCOPES
from sfumato_client import Client, SfumatoError
from sfumato_client.edit_requests import artifacts_of
from sfumato_client.stack import is_serving
from tests.editor_process import SMALL, noisy_image
from tests.rpcs import BEHIND, Rpc, all_rpcs, call, doors
from tests.secured import KEYS, Secured, credentials_json, key_of

PATHS = pytest.mark.parametrize("rpc", doors(), ids=lambda rpc: rpc.path)
NAMED = [
    rpc
    for rpc in doors()
    if "name" in rpc.request.DESCRIPTOR.fields_by_name and rpc.service != "sfumato.v1.GatewayService"
]
METHOD = "deep-image-prior"


@pytest.fixture
def channel(secured: Secured) -> Iterator[grpc.Channel]:
    with secured.channel() as opened:
        yield opened


@pytest.fixture(scope="module")
def acmes(secured: Secured) -> Iterator[str]:
    """Name of a finished edit of acme's, that made a mapper."""
    with secured.client("acme") as client:
        operation = client.start_edit(
            "styleclip-mapper-training", prompt="a cat", num_iterations=1, request_id="acmes"
        )
        artifacts_of(client.wait_operation(operation.name))
        yield operation.name


def lacking(rpc: Rpc) -> str:
    """A key without any of the scopes that the RPC takes."""
    return next(name for name, (_, scopes) in KEYS.items() if not SCOPES[rpc.path] & set(scopes))


def test_every_rpc_has_its_scopes_and_no_other_is_named() -> None:
    assert {rpc.path for rpc in doors()} == set(SCOPES)
    assert all(SCOPES.values())
    assert {rpc.service for rpc in all_rpcs()} >= BEHIND


@PATHS
def test_without_a_valid_credential_nothing_is_answered(channel: grpc.Channel, rpc: Rpc) -> None:
    for token in ("", "sfu_guess", key_of("acme")[:-1], "a.b.c", hashlib.sha256(b"").hexdigest()):
        ended = call(channel, rpc, [rpc.request().SerializeToString()], token)
        assert (ended.code, ended.responses) == (grpc.StatusCode.UNAUTHENTICATED, [])
        assert token not in ended.details or not token


@PATHS
def test_a_credential_without_the_scope_is_refused(channel: grpc.Channel, rpc: Rpc) -> None:
    ended = call(channel, rpc, [rpc.request().SerializeToString()], key_of(lacking(rpc)))
    assert (ended.code, ended.responses) == (grpc.StatusCode.PERMISSION_DENIED, [])
    assert ended.details.startswith(f"{rpc.path} needs the scope")


@PATHS
def test_a_refusal_does_not_read_the_message(channel: grpc.Channel, rpc: Rpc) -> None:
    """Bytes that are no message get the same answer: they are never parsed."""
    assert call(channel, rpc, [b"\xff" * 1000]).code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("rpc", NAMED, ids=lambda rpc: rpc.path)
def test_anothers_operation_is_as_if_it_were_not(channel: grpc.Channel, acmes: str, rpc: Rpc) -> None:
    others = key_of("globex")
    if rpc.name == "ListOperations":
        ended = call(channel, rpc, [b""], others)
        listed = operations_pb2.ListOperationsResponse.FromString(ended.responses[0])
        assert acmes not in [operation.name for operation in listed.operations]
        return
    theirs = call(channel, rpc, [rpc.request(name=acmes).SerializeToString()], others)
    nobodys = call(channel, rpc, [rpc.request(name="operations/none").SerializeToString()], others)
    assert theirs.code is nobodys.code is grpc.StatusCode.NOT_FOUND
    assert theirs.details.replace(acmes, "operations/none").replace("acmes", "none") == nobodys.details
    for name in (f"{acmes}@acme", "operations/@acme"):
        guessed = call(channel, rpc, [rpc.request(name=name).SerializeToString()], others)
        assert guessed.code is grpc.StatusCode.INVALID_ARGUMENT


def test_another_tenants_id_is_free_and_its_results_are_not(secured: Secured, acmes: str) -> None:
    with secured.client("globex") as client:
        for mapper in (acmes, f"{acmes}@acme"):
            with pytest.raises(SfumatoError) as error:
                client.start_edit("styleclip-mapper", image=noisy_image(), mapper=mapper)
            assert (error.value.code, error.value.field) == ("NOT_FOUND", "mapper")
        own = client.start_edit(METHOD, image=noisy_image(), num_iterations=1, request_id="acmes", **SMALL)
        assert own.name == acmes
        assert [artifact.name for artifact in artifacts_of(client.wait_operation(own.name))] == ["image"]
        assert [operation.name for operation in client.list_operations()] == [own.name]
        client.delete_operation(own.name)
    with secured.client("acme") as client:
        assert client.get_operation(acmes).done


def test_the_owner_header_of_a_client_is_ignored(channel: grpc.Channel, acmes: str) -> None:
    rpc = next(rpc for rpc in doors() if rpc.name == "GetOperation")
    asked = [rpc.request(name=acmes).SerializeToString()]
    ended = call(channel, rpc, asked, key_of("globex"), metadata=[("x-sfumato-owner", "acme")])
    assert ended.code is grpc.StatusCode.NOT_FOUND


def test_the_admin_scope_sees_all_operations_and_makes_none(secured: Secured, acmes: str) -> None:
    with secured.client("admin") as client:
        assert f"{acmes}@acme" in [operation.name for operation in client.list_operations()]
        assert client.get_operation(f"{acmes}@acme").name == f"{acmes}@acme"
        for refused in (lambda: client.generate("a cat"), lambda: client.start_edit(METHOD, prompts=["a"])):
            with pytest.raises(SfumatoError) as error:
                refused()
            assert error.value.code == "PERMISSION_DENIED"


def test_only_whoever_runs_the_deployment_loads_families(secured: Secured) -> None:
    for name, code in (("acme", "PERMISSION_DENIED"), ("admin", "FAILED_PRECONDITION")):
        with secured.client(name) as client, pytest.raises(SfumatoError) as error:
            client.load_family("other")
        assert error.value.code == code  # the services of these tests have no folder of families


def test_an_rpc_that_is_not_mapped_is_refused_and_one_behind_is_not_there(channel: grpc.Channel) -> None:
    from sfumato.common.errors import PermissionDenied
    from sfumato.gateway.access import Access
    from sfumato.gateway.config import GatewaySettings

    for rpc in all_rpcs():
        if rpc.service in BEHIND:
            assert call(channel, rpc, [b""], key_of("acme")).code is grpc.StatusCode.UNIMPLEMENTED
    import pathlib
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "credentials.json"
        path.write_text(json.dumps(credentials_json()))
        access = Access(GatewaySettings(credentials_file=path))  # type: ignore[call-arg]
        for name in ("acme", "admin"):
            with pytest.raises(PermissionDenied, match="one that no credential has"):
                access.identify("/sfumato.v1.NewService/New", [("authorization", f"Bearer {key_of(name)}")])


def test_reflection_is_off_by_default(secured: Secured) -> None:
    from sfumato.gateway.config import GatewaySettings

    assert not GatewaySettings().reflection  # type: ignore[call-arg]
    assert secured.stack.gateway.environment["SFUMATO_GATEWAY_REFLECTION"] == "false"
    with secured.channel() as channel:
        path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        with pytest.raises(grpc.RpcError) as error:
            list(channel.stream_stream(path)(iter([b""]), timeout=20))
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_health_is_open(secured: Secured) -> None:
    assert is_serving(secured.stack.gateway.health_target)


def test_a_quota_is_refused_with_the_time_to_wait(secured: Secured) -> None:
    with secured.client("tight") as client:
        for _ in range(3):
            client.list_families()
        with pytest.raises(SfumatoError) as error:
            client.list_families()
    assert (error.value.code, error.value.field) == ("RESOURCE_EXHAUSTED", "requests_per_minute")
    assert error.value.retry_seconds is not None
    assert 0 < error.value.retry_seconds <= 20


def test_the_wait_is_in_the_standard_detail(secured: Secured, channel: grpc.Channel) -> None:
    rpc = next(rpc for rpc in doors() if rpc.name == "ListFamilies")
    for _ in range(4):
        ended = call(channel, rpc, [b""], key_of("tight"))
    assert ended.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = status_pb2.Status.FromString(dict(ended.trailing)["grpc-status-details-bin"])  # type: ignore[arg-type]
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToTimedelta().total_seconds() > 0


def test_a_replaced_credentials_file_is_used_and_a_broken_one_is_not(secured: Secured) -> None:
    path = secured.stack.gateway.environment["SFUMATO_GATEWAY_CREDENTIALS_FILE"]

    def replace(text: str) -> None:
        with open(f"{path}.part", "w") as file:
            file.write(text)
        os.replace(f"{path}.part", path)

    def code(client: Client) -> str:
        try:
            client.list_families()
        except SfumatoError as error:
            return error.code
        return "OK"

    def until(client: Client, wanted: str) -> bool:
        end = time.monotonic() + 10
        while time.monotonic() < end and code(client) != wanted:
            time.sleep(0.2)
        return code(client) == wanted

    full: dict[str, Any] = credentials_json()
    revoked = {**full, "keys": [key for key in full["keys"] if key["id"] != "globex"]}
    with secured.client("globex") as globex, secured.client("acme") as acme:
        assert code(globex) == "OK"
        replace(json.dumps(revoked))
        assert until(globex, "UNAUTHENTICATED")
        replace("{broken")
        time.sleep(1.5)
        assert (code(globex), code(acme)) == ("UNAUTHENTICATED", "OK")
        replace(json.dumps(full))
        assert until(globex, "OK")
