"""Who calls, and whether there is room: what the interceptor asks before a call's handler runs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from sfumato.common.calls import OWNER_KEY, Caller

Metadata = Sequence[tuple[str, str | bytes]]


class Admission(Protocol):
    """A service's rule."""

    def identify(self, method: str, metadata: Metadata) -> Caller:
        """The caller. Runs before the message is read.

        Raises:
            Unauthenticated, PermissionDenied: no valid credential, or one that does not allow the method.
        """

    def admitted(self, caller: Caller) -> AbstractContextManager[None]:
        """Holds the caller's place for as long as the call lasts.

        Raises:
            ResourceExhausted: a quota is used up.
        """


class TrustGateway:
    """The rule behind the gateway: whoever may connect is the gateway (see docs/security.md)."""

    def identify(self, method: str, metadata: Metadata) -> Caller:
        owner = next((str(value) for key, value in metadata if key == OWNER_KEY), "")
        return Caller(tenant=owner, owner=owner)

    def admitted(self, caller: Caller) -> AbstractContextManager[None]:
        return nullcontext()
