"""The gateway's admission: a credential for each call, and the scope that each RPC needs."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import structlog

from sfumato.common.admission import Metadata
from sfumato.common.calls import Caller
from sfumato.common.errors import PermissionDenied, Unauthenticated
from sfumato.common.watched import WatchedFiles
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.credentials import ADVICE, Credentials, read_credentials, verify
from sfumato.gateway.quotas import Quotas

log = structlog.get_logger()

GENERATE, EDIT, ADMIN = "generate", "edit", "admin"
OPERATIONS = "/google.longrunning.Operations/"

# Any one of the scopes suffices. An RPC that is not here is refused: tests/integration/test_access.py makes
# its list from the descriptors, so that none is forgotten.
SCOPES: Mapping[str, frozenset[str]] = {
    "/sfumato.v1.GatewayService/Generate": frozenset({GENERATE}),
    "/sfumato.v1.GatewayService/EditPrompt": frozenset({GENERATE}),
    "/sfumato.v1.GatewayService/Compare": frozenset({GENERATE}),
    "/sfumato.v1.GatewayService/ListFamilies": frozenset({GENERATE, EDIT, ADMIN}),
    "/sfumato.v1.GatewayService/LoadFamily": frozenset({ADMIN}),
    "/sfumato.v1.GatewayService/UnloadFamily": frozenset({ADMIN}),
    "/sfumato.v1.EditorService/GetEditorInfo": frozenset({EDIT, ADMIN}),
    "/sfumato.v1.EditorService/Edit": frozenset({EDIT}),
    "/sfumato.v1.EditorService/WatchEdit": frozenset({EDIT}),
    f"{OPERATIONS}ListOperations": frozenset({EDIT, ADMIN}),
    f"{OPERATIONS}GetOperation": frozenset({EDIT, ADMIN}),
    f"{OPERATIONS}WaitOperation": frozenset({EDIT, ADMIN}),
    f"{OPERATIONS}CancelOperation": frozenset({EDIT, ADMIN}),
    f"{OPERATIONS}DeleteOperation": frozenset({EDIT, ADMIN}),
}


class Access:
    """Checks credentials where a credentials file is set; lets everyone in where none is."""

    def __init__(self, settings: GatewaySettings) -> None:
        """
        Raises:
            OSError, ValueError: the credentials file cannot be read.
        """
        self._quotas = Quotas()
        self._watched: WatchedFiles[Credentials] | None = None
        if settings.credentials_file is None:
            log.warning(
                "authentication is off: everyone who reaches the port may call",
                advice="set SFUMATO_GATEWAY_CREDENTIALS_FILE",
            )
        else:
            self._watched = WatchedFiles(
                [settings.credentials_file], lambda files: read_credentials(files[0])
            )

    def identify(self, method: str, metadata: Metadata) -> Caller:
        """
        Raises:
            Unauthenticated, PermissionDenied.
        """
        if self._watched is None:
            return Caller()
        grant = verify(bearer_token(metadata), self._watched.current())
        allowed = SCOPES.get(method, frozenset())
        if not allowed & grant.scopes:
            needed = " or ".join(sorted(allowed)) or "one that no credential has"
            raise PermissionDenied(f"{method} needs the scope {needed}; {grant.credential} has it not")
        # The admin scope is for whoever runs the deployment: it sees the operations of all tenants.
        sees_all = ADMIN in grant.scopes and method.startswith(OPERATIONS)
        return Caller(grant.tenant, grant.credential, "" if sees_all else grant.tenant)

    def admitted(self, caller: Caller) -> AbstractContextManager[None]:
        """
        Raises:
            ResourceExhausted: the tenant's quota is used up.
        """
        if self._watched is None:
            return nullcontext()
        return self._quotas.admitted(caller.tenant, self._watched.current().quota(caller.tenant))

    def counted(self, tenant: str) -> AbstractContextManager[None]:
        """Counts a tenant's request that runs on without a call."""
        if self._watched is None:
            return nullcontext()
        return self._quotas.counted(tenant, self._watched.current().quota(tenant))

    def share(self, tenant: str) -> float:
        """A tenant's weight where requests wait."""
        return 1.0 if self._watched is None else self._watched.current().quota(tenant).share


def bearer_token(metadata: Metadata) -> str:
    """The token in the one authorization entry.

    Raises:
        Unauthenticated: there is none, or several.
    """
    entries = [str(value) for key, value in metadata if key == "authorization"]
    scheme, _, token = entries[0].partition(" ") if len(entries) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated(f"a credential is needed: {ADVICE}")
    return token.strip()
