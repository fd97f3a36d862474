"""Failed calls of the model services, as errors that the client can read."""

import contextlib
from collections.abc import Iterator

import grpc

from sfumato.common.errors import DeadlineExceeded, Unavailable
from sfumato.common.status import DETAILS_KEY, ForwardedError

# What a call ends with when the service dies or drains. Our own cancellation is an asyncio.CancelledError.
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
LOST = (*GONE, grpc.StatusCode.UNKNOWN)  # and a stream of a denoiser or decoder


def is_lost(error: grpc.aio.AioRpcError) -> bool:
    """Whether the call may go better elsewhere, or again.

    grpc.aio puts a status of its own in the place of the server's when a stream ends while it is written to.
    """
    unfinished = error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"
    return unfinished or error.code() in LOST


def own_words(error: Exception) -> str:
    """A colon and why a service cannot, in its own words; nothing where gRPC alone speaks."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return ""
    spoken = any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())
    return f": {error.details()}" if spoken else ""


@contextlib.contextmanager
def calling(service: str, target: str) -> Iterator[None]:
    """Around a call: turns its failure into Unavailable, DeadlineExceeded, or the service's own error."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() in GONE:
            raise Unavailable(f"the {service} at {target} does not answer: {error.details()}") from error
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise DeadlineExceeded(f"the deadline passed in the {service}") from error
        raise ForwardedError(error) from error
