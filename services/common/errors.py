"""What domain code raises. One interceptor turns these into google.rpc status (status.py).

Messages say what was wrong, the limit, what was given and what to do.
"""


class SfumatoError(Exception):
    """Base of all errors that a client may see.

    Args:
        message: what was wrong and what to do, in one line.
        field: the request field it is about, "" if none.
        limit: what would have been accepted.
        value: what was given, shortened.

    Attributes:
        retry_seconds: when to try again, where that is known.
    """

    code: str = "INTERNAL"
    reason: str = "INTERNAL"
    retry_seconds: float | None = None

    def __init__(self, message: str, *, field: str = "", limit: object = "", value: object = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.limit = str(limit)
        self.value = shorten(value)


class _OfField(SfumatoError):
    """An error about one field; its message is made of the field, what it must or may be, and what it is."""

    verb: str

    def __init__(self, field: str, limit: object, value: object, advice: str = "") -> None:
        text = f"{field} {self.verb} {limit}, but is {shorten(value)}"
        super().__init__(f"{text}. {advice}" if advice else text, field=field, limit=limit, value=value)


class InvalidArgument(_OfField):
    """A field of the request is wrong; sending it again cannot help."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"
    verb = "must be"


class ResourceExhausted(_OfField):
    """A configured limit would be passed."""

    code = "RESOURCE_EXHAUSTED"
    reason = "LIMIT_EXCEEDED"
    verb = "may be"


class Unauthenticated(SfumatoError):
    """No valid credential. The message does not tell an unknown one from a wrong one."""

    code = "UNAUTHENTICATED"
    reason = "NO_VALID_CREDENTIAL"


class PermissionDenied(SfumatoError):
    """The credential is valid, and does not allow this."""

    code = "PERMISSION_DENIED"
    reason = "SCOPE_MISSING"


class NotFound(SfumatoError):
    """The named resource does not exist."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class AlreadyExists(SfumatoError):
    """The name is taken by something else."""

    code = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class FailedPrecondition(SfumatoError):
    """Not in this state, or not with this family; something else has to be chosen or happen first."""

    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class Unimplemented(SfumatoError):
    """Not offered by this deployment."""

    code = "UNIMPLEMENTED"
    reason = "NOT_OFFERED"


class Unavailable(SfumatoError):
    """A service that is needed does not answer; trying again later may help."""

    code = "UNAVAILABLE"
    reason = "SERVICE_UNAVAILABLE"
    was_repeated = False  # whether this service has asked again and again, so that its caller need not


class DeadlineExceeded(SfumatoError):
    """The request's deadline passed."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


def shorten(value: object, length: int = 80) -> str:
    """A value as text of at most `length` characters: errors travel in HTTP/2 headers."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
