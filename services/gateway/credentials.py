"""The credentials file: API keys by their digests, JWT issuers, quotas; and what a token is worth."""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import jwt
from jwt.types import Options
from pydantic import AwareDatetime, BaseModel, Field, SecretStr, ValidationError, model_validator

from sfumato.common.errors import Unauthenticated
from sfumato.gateway.json_file import FileModel, read_json

TENANT = r"[a-z0-9][a-z0-9-]{0,62}"
Tenant = Annotated[str, Field(pattern=f"^{TENANT}$")]
Scope = Literal["generate", "edit", "admin"]
MIN_SECRET_BYTES = 32  # RFC 7518, 3.2: a key of the hash's size or larger
ADVICE = "send the metadata authorization: Bearer KEY"


class ApiKey(FileModel):
    """A key, known by its digest only."""

    id: str = Field(min_length=1, max_length=128, description="Named in the audit log.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the key, hexadecimal.")
    tenant: Tenant
    scopes: frozenset[Scope]
    expires: AwareDatetime | None = Field(None, description="Default: never.")


class Issuer(FileModel):
    """Whose JWTs are taken. Claims: iss, aud, sub, exp, tenant, and scope (words in one text)."""

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    algorithm: Literal["HS256", "RS256", "ES256", "EdDSA"] = Field(description="The only one taken.")
    key: SecretStr = Field(description="The public key, PEM; for HS256 the secret, 32 bytes or more.")

    @model_validator(mode="after")
    def _key_is_of_the_algorithm(self) -> "Issuer":
        secret = self.key.get_secret_value().encode()
        if self.algorithm == "HS256" and len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"a secret for HS256 must have {MIN_SECRET_BYTES} bytes or more")
        try:
            jwt.get_algorithm_by_name(self.algorithm).prepare_key(secret)
        except Exception as error:  # each key format has its own; none may be quoted
            raise ValueError(f"the key of {self.issuer} is none for {self.algorithm}") from error
        return self


class Quota(FileModel):
    """What a tenant may use at a gateway replica."""

    concurrent_requests: int = Field(16, gt=0)
    requests_per_minute: int = Field(600, gt=0)
    share: float = Field(1.0, gt=0, le=1000, description="Of the row-steps, against other waiting tenants'.")


class Credentials(FileModel):
    """The whole file."""

    keys: tuple[ApiKey, ...] = ()
    issuers: tuple[Issuer, ...] = ()
    quotas: dict[Tenant, Quota] = Field(default={}, description="By tenant.")
    default_quota: Quota = Field(
        default_factory=Quota.model_construct, description="Of a tenant that quotas does not name."
    )

    def quota(self, tenant: str) -> Quota:
        """A tenant's."""
        return self.quotas.get(tenant, self.default_quota)


@dataclass(frozen=True)
class Grant:
    """What a valid token gives."""

    credential: str  # id of the key, or subject of the JWT
    tenant: str
    scopes: frozenset[str]


def read_credentials(text: bytes) -> Credentials:
    """
    Raises:
        ValueError: it is no valid credentials file. The message quotes no value: some are secrets.
    """
    return read_json(Credentials, text, "credentials file")


def verify(token: str, credentials: Credentials) -> Grant:
    """
    Raises:
        Unauthenticated: it is no token of these.
    """
    grant = _verify_jwt(token, credentials) if token.count(".") == 2 else _verify_key(token, credentials)
    if grant is None:
        raise Unauthenticated(f"the credential is not valid: {ADVICE}")
    return grant


def _verify_key(token: str, credentials: Credentials) -> Grant | None:
    """Every digest is compared, each in constant time, so that time tells nothing about the keys."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    found = None
    for key in credentials.keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key
    if found is None or (found.expires is not None and found.expires <= datetime.now(UTC)):
        return None
    return Grant(found.id, found.tenant, found.scopes)


def _verify_jwt(token: str, credentials: Credentials) -> Grant | None:
    for issuer in credentials.issuers:
        try:
            # The header's algorithm is not believed: each issuer has one, with a key of its own.
            claims = jwt.decode(
                token,
                issuer.key.get_secret_value(),
                algorithms=[issuer.algorithm],
                audience=issuer.audience,
                issuer=issuer.issuer,
                options=Options(require=["exp", "iss", "aud", "sub"]),
            )
        except jwt.InvalidTokenError:
            continue
        return _grant_of(claims)
    return None


def _grant_of(claims: dict[str, Any]) -> Grant | None:
    try:
        checked = _Claims.model_validate(claims)
    except ValidationError:
        return None
    return Grant(checked.sub, checked.tenant, frozenset(checked.scope.split()))


class _Claims(BaseModel):
    sub: str = Field(max_length=128)
    tenant: Tenant
    scope: str = ""
