"""Why an engine did not start.

When a core process or a worker ends, vLLM's front end says only that it did ('Engine core initialization failed'). The
reason is in the log of the process that ended. So that process also writes the reason to a file, and the front end
reads the file."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from vllm.v1.engine.core import EngineCoreProc

FILE = "CHOIR_ENGINE_FAILURE"
"""The environment variable that names the file."""
LONGEST = 600
"""The most characters of a reason that are shown."""

_WORKERS = "vllm.v1.executor.multiproc_executor"
"""The logger of vLLM's worker processes: their exceptions leave them only as log records."""
_run_engine_core = EngineCoreProc.run_engine_core


class EngineStartError(Exception):
    """The engine did not start; the message says why, for the person who starts the server."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns every exception of an engine's start into an EngineStartError that says the reason."""
    with tempfile.TemporaryDirectory(prefix="choir-engine-") as folder:
        file = Path(folder) / "reason"
        os.environ[FILE] = str(file)
        EngineCoreProc.run_engine_core = staticmethod(run_engine_core)
        try:
            yield
        except Exception as error:
            reason = file.read_text("utf-8") if file.exists() else root_cause(error)
            raise EngineStartError(f"The engine did not start: {reason}") from error
        finally:
            EngineCoreProc.run_engine_core = staticmethod(_run_engine_core)
            os.environ.pop(FILE, None)


def run_engine_core(*args: Any, **kwargs: Any) -> None:
    """Runs vLLM's core process, and writes down what ends it."""
    try:
        _run_engine_core(*args, **kwargs)
    except Exception as error:
        write_reason(error)
        raise


def write_reason(error: BaseException) -> None:
    """Writes the reason to the file. The first process of the engine to end writes it; later ones change nothing."""
    if (file := os.environ.get(FILE)) is not None:
        with contextlib.suppress(OSError), open(file, "x", encoding="utf-8") as out:
            out.write(root_cause(error))


def root_cause(error: BaseException) -> str:
    """Returns the first exception of the chain of causes in one line: its type, and up to LONGEST characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if isinstance(error, ValidationError):
        text = "; ".join(str(each["msg"]) for each in error.errors())
    text = " ".join(text.split())
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _ReasonWriter(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            write_reason(record.exc_info[1])


def watch_worker() -> None:
    """Makes this worker process write down what ends it."""
    logging.getLogger(_WORKERS).addHandler(_ReasonWriter(logging.ERROR))
