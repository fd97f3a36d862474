"""Errors to google.rpc status and back."""

import math

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from sfumato.common.calls import Context
from sfumato.common.errors import SfumatoError, Unavailable

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "sfumato"
NOT_AGAIN = ("grpc-retry-pushback-ms", "-1")  # to gRPC's own retries at the client


class ForwardedError(SfumatoError):
    """A status from another service, passed on to the client unchanged."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details() or error.code().name)
        self.grpc_code = error.code()
        self.trailing_metadata = tuple(
            (key, value) for key, value in (error.trailing_metadata() or ()) if key == DETAILS_KEY
        )


def to_status(error: SfumatoError) -> status_pb2.Status:
    """The google.rpc status of an error: ErrorInfo, BadRequest where it is about a field, RetryInfo."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={"field": error.field, "limit": error.limit, "value": error.value} if error.field else {},
    )
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message)
    details: list[Message] = [info]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(1000 * error.retry_seconds))
        details.append(retry)
    for detail in details:
        status.details.add().Pack(detail)
    return status


async def abort(context: Context, error: SfumatoError) -> None:
    """Ends the call with the error's status; then its handler has only to return."""
    if isinstance(error, ForwardedError):
        code, trailing_metadata = error.grpc_code, error.trailing_metadata
    else:
        code = grpc.StatusCode[error.code]
        trailing_metadata = ((DETAILS_KEY, to_status(error).SerializeToString()),)
        if isinstance(error, Unavailable) and error.was_repeated:
            trailing_metadata += (NOT_AGAIN,)
    try:
        await context.abort(code, error.message, trailing_metadata)
    except grpc.aio.AbortError as aborted:
        # grpc.aio keeps it in a cycle with the call and raises it again when the handler returns. Passed on
        # from here it would take along, by its traceback, every frame and so the request, until Python looks
        # for cycles: 700 MB after 6,000 refused calls.
        aborted.__traceback__ = aborted.__context__ = error.__traceback__ = None
