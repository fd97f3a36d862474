"""Logs: one JSON object a line, with the ids of the request that it belongs to."""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

import structlog

from sfumato.common import tracing


def configure(level_name: str, exception_messages: bool = False) -> None:
    """For structlog, and for libraries that use logging: warnings and worse.

    Args:
        level_name: the lowest level that is logged.
        exception_messages: whether an exception's message is logged with it: it may quote a prompt.
    """
    level = logging.getLevelNamesMapping().get(level_name.upper(), logging.INFO)
    exceptions: structlog.typing.Processor = (
        structlog.processors.format_exc_info if exception_messages else frames_alone
    )
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_ids,
        exceptions,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    last: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared], processors=last
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def add_ids(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Adds request_id and trace_id where the line is of a request."""
    for name, value in (("request_id", tracing.request_id.get()), ("trace_id", tracing.trace_id())):
        if value:
            line.setdefault(name, value)
    return line


def frames_alone(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An exception as its type and where it was raised, through all its causes, without what it says."""
    given = line.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else (given and sys.exc_info()[1])
    if isinstance(given, tuple):
        error = given[1]
    shown = []
    while error:
        shown.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__)
        error = error.__cause__ or error.__context__
    if shown:
        line["exception"] = "\n".join(shown)
    return line
