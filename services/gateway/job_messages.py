"""A generation's messages as a job's: which requests are the same, what is kept, and for how long."""

import hashlib
import math
from typing import Literal

from sfumato_protos.v1 import gateway_pb2

from sfumato.common.errors import InvalidArgument
from sfumato.gateway.job import Event, Policy

KEEP_SECONDS = 300.0
# How a request is handled; what it makes is the same.
HANDLING: tuple[Literal["priority", "on_disconnect", "keep_seconds", "resume_from"], ...] = (
    "priority",
    "on_disconnect",
    "keep_seconds",
    "resume_from",
)
NEED_ID = ("on_disconnect", "keep_seconds", "resume_from")
PASSING = ("step", "attention_maps")


def fingerprint(request: gateway_pb2.GenerateRequest) -> bytes:
    """The same for requests that make the same."""
    made = gateway_pb2.GenerateRequest()
    made.CopyFrom(request)
    for field in HANDLING:
        made.ClearField(field)
    return hashlib.sha256(made.SerializeToString(deterministic=True)).digest()


def check_handling(request: gateway_pb2.GenerateRequest, max_keep_seconds: float) -> Policy:
    """What the request wants when nobody reads it.

    Raises:
        InvalidArgument: a value out of range, or one that needs an id.
    """
    if not request.request_id:
        for descriptor, value in request.ListFields():
            if descriptor.name in NEED_ID:
                raise InvalidArgument(descriptor.name, "left out", value, "It needs a request_id.")
    if request.on_disconnect not in gateway_pb2.OnDisconnect.values():
        raise InvalidArgument("on_disconnect", "one of CANCEL, CONTINUE", request.on_disconnect)
    seconds = (
        request.keep_seconds if request.HasField("keep_seconds") else min(KEEP_SECONDS, max_keep_seconds)
    )
    if not (math.isfinite(seconds) and 0 < seconds <= max_keep_seconds):
        raise InvalidArgument("keep_seconds", f"above 0, up to {max_keep_seconds:g}", seconds)
    if request.resume_from < 0:
        raise InvalidArgument("resume_from", "0 or more", request.resume_from)
    return Policy(request.on_disconnect == gateway_pb2.ON_DISCONNECT_CONTINUE, seconds)


def as_event(response: gateway_pb2.GenerateResponse) -> Event[gateway_pb2.GenerateResponse]:
    """The response as a job keeps it."""
    return Event(response, response.ByteSize(), response.WhichOneof("event") in PASSING)
