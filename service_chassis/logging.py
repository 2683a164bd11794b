"""Logs: one JSON line per event on stderr, with the request's id.

Knows that foreign text may hold private data, so an exception is a type and code locations, and
the text of other libraries' records is left out; knows nothing of what the services do.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import structlog

# Innermost frames are the ones that say where it broke.
_MAX_FRAMES = 12


def configure_logging(level: str, service: str) -> None:
    """Send this process's logs to stderr as JSON lines. Changes process-wide state.

    Args:
        level: debug, info, warning or error.
        service: Name of the service, on every line.
    """
    number = getattr(logging, level.upper())

    def name_service(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {"service": service, **event}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            name_service,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _replace_exception,
            structlog.processors.JSONRenderer(default=_type_only),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_ForeignHandler()]
    root.setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)
    sys.excepthook = _log_crash
    threading.excepthook = _log_thread_crash


def describe_exception(error: BaseException) -> dict[str, Any]:
    """An exception without its message, which may quote what a caller sent.

    Args:
        error: Any exception.

    Returns:
        `type` and `where`: its class, and `module:line` of the innermost frames, outermost first.
    """
    frames = list(traceback.walk_tb(error.__traceback__))[-_MAX_FRAMES:]
    where = [f"{frame.f_globals.get('__name__', '?')}:{line}" for frame, line in frames]
    return {"type": type(error).__name__, "where": where}


class _ForeignHandler(logging.Handler):
    """Reports that another library logged something, and where, without its text."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().log(
            logging.ERROR if record.levelno >= logging.ERROR else logging.WARNING,
            "library record",
            logger=record.name,
            where=f"{record.module}:{record.lineno}",
            **({"exc_info": error} if error is not None else {}),
        )


def _replace_exception(
    _: Any, __: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["exception"] = describe_exception(error)
    return event


def _type_only(value: object) -> str:
    # A repr of a request would hold its content.
    return f"<{type(value).__name__}>"


def _log_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger().critical("uncaught exception", exc_info=error.with_traceback(trace))


def _log_thread_crash(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        structlog.get_logger().critical("uncaught exception in a thread", exc_info=args.exc_value)
