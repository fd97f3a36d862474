"""The audit line: who asked for what, and how it ended; never a secret, a tensor or an image."""

from collections.abc import Iterator

import structlog
from google.protobuf.message import Message

from sfumato.common import calls

# Written whatever the log level is.
log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(0))


def write(method: str, code: str, seconds: float, peer: str, texts: list[str]) -> None:
    """The line of a call that ended; its ids are added as to every line."""
    caller = calls.caller.get()
    prompts = {"prompts": texts} if texts else {}
    log.info(
        "call", method=method, code=code, seconds=seconds, tenant=caller.tenant, credential=caller.credential,
        peer=peer, **prompts,
    )  # fmt: skip


def texts_of(message: Message) -> Iterator[str]:
    """The words that a client wrote: prompts, and texts of prompts, however deep."""
    for field, value in message.ListFields():
        entries = value if field.is_repeated else [value]
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for entry in entries:
                yield from texts_of(entry)
        elif field.type == field.TYPE_STRING and ("prompt" in field.name or field.name == "text"):
            yield from entries
