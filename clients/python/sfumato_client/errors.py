"""What a failed call raises: the google.rpc status, with field, limit and value where there are any."""

from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
CLIENT_CLOSED = "CLIENT_CLOSED"  # reason of a call that the client's own close() ended


class SfumatoError(Exception):
    """A call failed.

    Attributes:
        code: name of the gRPC status, such as "INVALID_ARGUMENT".
        message: what was wrong, the limit, what was given, what to do.
        reason: the ErrorInfo's reason, "" without one.
        field, limit, value: what it is about, "" where it is about no field.
        retry_seconds: when to try again, None where that is not known.
    """

    def __init__(self, code: str, message: str, reason: str = "") -> None:
        super().__init__(code, message)  # as pickle gives them back, between processes
        self.code = code
        self.message = message
        self.reason = reason
        self.field = self.limit = self.value = ""
        self.retry_seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def from_rpc_error(error: grpc.RpcError) -> SfumatoError:
    """Reads the status details of an error of a sync or async call."""
    call = cast(grpc.Call, error)
    result = SfumatoError(call.code().name, call.details() or "no details")
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            read_details(result, status_pb2.Status.FromString(value))
    return result


def read_details(result: SfumatoError, status: status_pb2.Status) -> None:
    """Fills in reason, field, limit and value from a status's ErrorInfo, retry_seconds from its RetryInfo."""
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            result.retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            result.reason = info.reason
            result.field = info.metadata.get("field", "")
            result.limit = info.metadata.get("limit", "")
            result.value = info.metadata.get("value", "")
