"""What a call carries through the services: its request id, its trace and its deadline."""

import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypedDict

import grpc
from google.longrunning import operations_pb2

from sfumato.common.errors import InvalidArgument
from sfumato.common.tracing import headers
from sfumato.common.tracing import request_id as request_id

# A call's context, whatever its messages.
Context = grpc.aio.ServicerContext[Any, Any]

REQUEST_ID_KEY = "x-request-id"
MAX_WAIT_SECONDS = 315_576_000_000  # what a google.protobuf.Duration holds
OWNER_KEY = "x-sfumato-owner"  # from the gateway to the editor


@dataclass(frozen=True)
class Caller:
    """Who calls; all empty where nobody has to say.

    Attributes:
        tenant: whom the call counts for.
        credential: id of the key, or subject of the JWT; no secret.
        owner: whose edits the call may see; "": all.
    """

    tenant: str = ""
    credential: str = ""
    owner: str = ""


caller: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039  (it is frozen)
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


class CallOptions(TypedDict):
    """Keyword arguments of a stub's call."""

    timeout: float | None
    metadata: tuple[tuple[str, str], ...]


def remaining_seconds() -> float | None:
    """Seconds until the current call's deadline, at least 0; None without one."""
    end = deadline.get()
    return None if end is None else max(0.0, end - time.monotonic())


def wait_seconds(request: operations_pb2.WaitOperationRequest) -> float | None:
    """The timeout that a WaitOperation asks for, None where it sets none.

    Raises:
        InvalidArgument: it is negative, or no google.protobuf.Duration.
    """
    if not request.HasField("timeout"):
        return None
    seconds, nanos = request.timeout.seconds, request.timeout.nanos
    if not (0 <= seconds <= MAX_WAIT_SECONDS and 0 <= nanos < 10**9):
        raise InvalidArgument("timeout", f"0 to {MAX_WAIT_SECONDS} s", f"{seconds} s and {nanos} ns")
    return float(seconds + nanos / 1e9)


def outgoing() -> CallOptions:
    """Deadline, request id, owner and trace of the current call, for a call to another service."""
    owner = caller.get().owner
    owned = ((OWNER_KEY, owner),) if owner else ()
    metadata = ((REQUEST_ID_KEY, request_id.get()), *owned, *headers())
    return {"timeout": remaining_seconds(), "metadata": metadata}
