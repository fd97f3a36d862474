"""Why an edit ended before its end."""

from dataclasses import dataclass

import structlog
import torch

from sfumato.common.errors import ResourceExhausted, SfumatoError
from sfumato.editor.edits import Edit

log = structlog.get_logger()


class Cancelled(Exception):
    """The edit was cancelled: nothing of it is needed any more."""


@dataclass(frozen=True)
class Failure:
    """Why an edit ended, as google.rpc.Status has it."""

    code: str
    reason: str
    message: str
    field: str = ""
    limit: str = ""
    value: str = ""


def failure_of(error: Exception, edit: Edit) -> Failure:
    """What the client is told of the exception that ended the edit; one that nobody foresaw is logged."""
    if isinstance(error, Cancelled):
        return Failure("CANCELLED", "CANCELLED", "cancelled")
    if isinstance(error, SfumatoError):
        return Failure(error.code, error.reason, error.message, error.field, error.limit, error.value)
    if isinstance(error, torch.OutOfMemoryError):
        full = ResourceExhausted("image", "smaller for this device's memory", str(error))
        return Failure(full.code, full.reason, full.message)
    log.error("failed", operation=edit.id, method=edit.method, exc_info=error)
    return Failure("INTERNAL", "INTERNAL", f"{edit.method} failed; the editor's log has {edit.id}")
