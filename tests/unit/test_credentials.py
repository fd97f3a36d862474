"""What a token is worth, and what a tenant may use."""

import base64
import hashlib
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sfumato.common.errors import ResourceExhausted, Unauthenticated
from sfumato.gateway.access import bearer_token
from sfumato.gateway.credentials import Credentials, Quota, read_credentials, verify
from sfumato.gateway.quotas import MANY_TENANTS, Quotas

SECRET = "an hs256 secret of more than 32 bytes"
CLAIMS = {"iss": "https://issuer", "aud": "sfumato", "sub": "ada", "tenant": "acme", "scope": "generate edit"}


def pem_pair(key: Any) -> tuple[str, str]:
    """Private and public key, PEM."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


PAIRS = {
    "HS256": (SECRET, SECRET),
    "RS256": pem_pair(rsa.generate_private_key(65537, 2048)),
    "ES256": pem_pair(ec.generate_private_key(ec.SECP256R1())),
    "EdDSA": pem_pair(ed25519.Ed25519PrivateKey.generate()),
}


def credentials(**more: Any) -> Credentials:
    """One key, `secret-key`, and what is given."""
    digest = hashlib.sha256(b"secret-key").hexdigest()
    key = {"id": "ci", "sha256": digest, "tenant": "acme", "scopes": ["generate"]}
    return read_credentials(json.dumps({"keys": [key], **more}).encode())


def issuer(algorithm: str) -> dict[str, str]:
    return {
        "issuer": "https://issuer", "audience": "sfumato", "algorithm": algorithm, "key": PAIRS[algorithm][1],
    }  # fmt: skip


def token(algorithm: str = "EdDSA", signed_by: str | None = None, **claims: Any) -> str:
    """A token of the issuer's; None leaves a claim out."""
    given = {**CLAIMS, "exp": time.time() + 60, **claims}
    present = {name: value for name, value in given.items() if value is not None}
    return jwt.encode(present, signed_by or PAIRS[algorithm][0], algorithm)


def test_a_key_is_known_by_its_digest() -> None:
    grant = verify("secret-key", credentials())
    assert (grant.credential, grant.tenant, grant.scopes) == ("ci", "acme", {"generate"})
    for wrong in ("secret-kez", "", hashlib.sha256(b"secret-key").hexdigest(), "sécret"):
        with pytest.raises(Unauthenticated):
            verify(wrong, credentials())


def test_every_digest_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that time does not tell which keys there are."""
    compared = []
    real = hashlib.sha256
    keys = [
        {"id": str(i), "sha256": real(str(i).encode()).hexdigest(), "tenant": "acme", "scopes": []}
        for i in range(5)
    ]
    given = read_credentials(json.dumps({"keys": keys}).encode())
    import hmac

    same = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or same(a, b))
    assert verify("0", given).credential == "0"
    assert len(compared) == 5


def test_an_expired_key_is_none() -> None:
    digest = hashlib.sha256(b"old").hexdigest()
    for expires, valid in (("2020-01-01T00:00:00Z", False), ("2999-01-01T00:00:00Z", True)):
        key = {"id": "old", "sha256": digest, "tenant": "acme", "scopes": [], "expires": expires}
        given = read_credentials(json.dumps({"keys": [key]}).encode())
        if valid:
            assert verify("old", given).credential == "old"
        else:
            with pytest.raises(Unauthenticated):
                verify("old", given)


@pytest.mark.parametrize("algorithm", PAIRS)
def test_a_jwt_gives_tenant_and_scopes(algorithm: str) -> None:
    grant = verify(token(algorithm), credentials(issuers=[issuer(algorithm)]))
    assert (grant.credential, grant.tenant, grant.scopes) == ("ada", "acme", {"generate", "edit"})


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1}, {"exp": None}, {"aud": "another"}, {"aud": None}, {"iss": "https://evil"},
        {"iss": None}, {"sub": None}, {"tenant": None}, {"tenant": "A/../b"}, {"tenant": ""},
        {"nbf": 2**32}, {"scope": 7},
        {"signed_by": pem_pair(ed25519.Ed25519PrivateKey.generate())[0]},
    ],
)  # fmt: skip
def test_a_jwt_with_a_wrong_claim_or_signature_is_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        verify(token(**claims), credentials(issuers=[issuer("EdDSA")]))


def test_the_algorithm_of_the_header_is_not_believed() -> None:
    given = credentials(issuers=[issuer("RS256")])
    header, body, _ = token("RS256").split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    hs256 = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    # The public key as an HMAC secret: the classic confusion.
    import hmac

    signature = hmac.digest(PAIRS["RS256"][1].encode(), f"{hs256}.{body}".encode(), "sha256")
    confused = f"{hs256}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    for forged in (f"{none}.{body}.", confused, f"{header}.{body}."):
        with pytest.raises(Unauthenticated):
            verify(forged, given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuers": [{**issuer("HS256"), "key": "short secret"}]},
        {"issuers": [{**issuer("RS256"), "key": SECRET}]},
        {"issuers": [{**issuer("RS256"), "algorithm": "none"}]},
        {"keys": [{"id": "a", "sha256": "in clear", "tenant": "acme", "scopes": []}]},
        {"keys": [{"id": "a", "sha256": "0" * 64, "tenant": "no tenant", "scopes": []}]},
        {"keys": [{"id": "a", "sha256": "0" * 64, "tenant": "acme", "scopes": ["everything"]}]},
        {"unknown": 1},
        {"quotas": {"acme": {"requests_per_minute": 0}}},
    ],
)
def test_a_wrong_file_is_refused_without_quoting_it(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="credentials") as error:
        read_credentials(json.dumps(wrong).encode())
    for secret in ("short secret", SECRET, "in clear"):
        assert secret not in str(error.value)


@pytest.mark.parametrize(
    "metadata",
    [
        [], [("authorization", "")], [("authorization", "Basic abc")], [("authorization", "Bearer ")],
        [("authorization", "Bearer a"), ("authorization", "Bearer b")], [("x-api-key", "a")],
    ],
)  # fmt: skip
def test_one_bearer_token_is_needed(metadata: list[tuple[str, str]]) -> None:
    with pytest.raises(Unauthenticated):
        bearer_token(metadata)
    assert bearer_token([("authorization", "bearer abc")]) == "abc"


def test_a_quota_limits_what_runs_and_what_a_minute_has() -> None:
    now = [0.0]
    quotas, quota = Quotas(lambda: now[0]), Quota(concurrent_requests=2, requests_per_minute=3)
    with quotas.admitted("acme", quota), quotas.admitted("acme", quota):
        with pytest.raises(ResourceExhausted, match="2 at one time") as error, quotas.admitted("acme", quota):
            pass
        assert error.value.retry_seconds == 1.0
        with quotas.admitted("globex", quota):
            pass
    with quotas.admitted("acme", quota):
        pass
    with pytest.raises(ResourceExhausted, match="3 a minute") as error, quotas.admitted("acme", quota):
        pass
    assert error.value.retry_seconds == pytest.approx(20)
    now[0] += error.value.retry_seconds or 0
    with quotas.admitted("acme", quota):
        pass
    with pytest.raises(ResourceExhausted), quotas.admitted("acme", quota):
        pass


def test_a_failed_request_gives_its_place_back() -> None:
    quotas, quota = Quotas(), Quota(concurrent_requests=1, requests_per_minute=100)
    for _ in range(3):
        with pytest.raises(KeyError), quotas.admitted("acme", quota):
            raise KeyError


def test_tenants_that_came_once_are_forgotten() -> None:
    now = [0.0]
    quotas = Quotas(lambda: now[0])
    for index in range(3 * MANY_TENANTS):
        now[0] += 1
        with quotas.admitted(f"tenant-{index}", Quota()):
            pass
    assert len(quotas._usage) <= MANY_TENANTS + 1
