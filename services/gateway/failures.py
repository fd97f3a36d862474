"""Failed calls of the model services, as errors that the client can read."""

import contextlib
from collections.abc import Iterator

import grpc

from sfumato.common.errors import DeadlineExceeded, Unavailable
from sfumato.common.status import ForwardedError


@contextlib.contextmanager
def calling(service: str, target: str) -> Iterator[None]:
    """Around a call: turns its failure into Unavailable, DeadlineExceeded, or the service's own error."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            raise Unavailable(f"the {service} at {target} does not answer: {error.details()}") from error
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise DeadlineExceeded(f"the deadline passed in the {service}") from error
        raise ForwardedError(error) from error
