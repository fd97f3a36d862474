"""Messages of requests as a job's: which requests are the same, what is kept, and for how long."""

import hashlib
import math
from typing import Literal

from sfumato_protos.v1 import gateway_pb2

from sfumato.common.errors import InvalidArgument
from sfumato.gateway.job import Event, Policy

KEEP_SECONDS = 300.0
# How a request is handled; what it makes is the same.
HANDLING: tuple[
    Literal["priority", "on_disconnect", "keep_seconds", "resume_from", "progress_interval_steps"], ...
] = ("priority", "on_disconnect", "keep_seconds", "resume_from", "progress_interval_steps")
NEED_ID = ("on_disconnect", "keep_seconds", "resume_from")
PASSING = ("step", "attention_maps")

Request = gateway_pb2.GenerateRequest | gateway_pb2.EditPromptRequest | gateway_pb2.CompareRequest
Handling = gateway_pb2.GenerateRequest | gateway_pb2.EditPromptRequest
Response = gateway_pb2.GenerateResponse | gateway_pb2.EditPromptResponse | gateway_pb2.CompareResponse
Numbered = gateway_pb2.GenerateResponse | gateway_pb2.EditPromptResponse


def handling_of(request: Request) -> Handling:
    """What says how the request is handled; a comparison's is in the request that its settings share."""
    return request.request if isinstance(request, gateway_pb2.CompareRequest) else request


def numbered(response: Response) -> Numbered:
    """What has the event and its number."""
    return response.event if isinstance(response, gateway_pb2.CompareResponse) else response


def fingerprint(request: Request) -> bytes:
    """The same for requests that make the same."""
    made = type(request)()
    made.MergeFrom(request)  # type: ignore[arg-type]
    for field in HANDLING:
        handling_of(made).ClearField(field)
    digest = hashlib.sha256(made.DESCRIPTOR.full_name.encode())
    digest.update(made.SerializeToString(deterministic=True))
    return digest.digest()


def resolved(request: Request, response: Response) -> Request | None:
    """The same request with its defaults filled in, where the response has it whole."""
    if isinstance(response, gateway_pb2.CompareResponse) or not response.HasField("accepted"):
        return None
    given = handling_of(request)
    if given.image or (isinstance(given, gateway_pb2.GenerateRequest) and given.mask):
        return None  # which the response leaves out
    return response.accepted.parameters


def check_handling(request: Handling, max_keep_seconds: float) -> Policy:
    """What the request wants when nobody reads it.

    Raises:
        InvalidArgument: a value out of range, or one that needs an id.
    """
    known = gateway_pb2.OnDisconnect.DESCRIPTOR.values_by_number.get(request.on_disconnect)
    if not request.request_id:
        for descriptor, value in request.ListFields():
            if descriptor.name in NEED_ID:
                named = known.name if known and descriptor.name == "on_disconnect" else value
                raise InvalidArgument(descriptor.name, "left out", named, "It needs a request_id.")
    if known is None:
        limit = "one of ON_DISCONNECT_CANCEL, ON_DISCONNECT_CONTINUE"
        raise InvalidArgument("on_disconnect", limit, request.on_disconnect)
    seconds = (
        request.keep_seconds if request.HasField("keep_seconds") else min(KEEP_SECONDS, max_keep_seconds)
    )
    if not (math.isfinite(seconds) and 0 < seconds <= max_keep_seconds):
        raise InvalidArgument("keep_seconds", f"above 0, up to {max_keep_seconds:g}", seconds)
    if request.resume_from < 0:
        raise InvalidArgument("resume_from", "0 or more", request.resume_from)
    return Policy(request.on_disconnect == gateway_pb2.ON_DISCONNECT_CONTINUE, seconds)


def as_event(response: Response) -> Event[Response]:
    """The response as a job keeps it."""
    return Event(response, response.ByteSize(), numbered(response).WhichOneof("event") in PASSING)
