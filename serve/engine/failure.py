"""Why an engine did not start: what ended vLLM's processes, told in the one that started them.

Of a core or a worker that ended, vLLM's front end says no more than that it did ('Engine core initialization failed');
the reason stands in that process's log. So it is also written to a file that the front end reads."""

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
"""Characters of a reason that are shown."""

_WORKERS = "vllm.v1.executor.multiproc_executor"
"""The logger of processes that compute beside the core: their exceptions never leave them but as text."""
_run_engine_core = EngineCoreProc.run_engine_core


class EngineStartError(Exception):
    """The engine did not start; the message says why, for the person who starts the server."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Around an engine's start. Raises EngineStartError instead of any other exception."""
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
    """vLLM's core process, which tells what ends it."""
    try:
        _run_engine_core(*args, **kwargs)
    except Exception as error:
        tell(error)
        raise


def tell(error: BaseException) -> None:
    """Write the reason, unless another process of this engine, which ended earlier, has written its own."""
    if (file := os.environ.get(FILE)) is not None:
        with contextlib.suppress(OSError), open(file, "x", encoding="utf-8") as out:
            out.write(root_cause(error))


def root_cause(error: BaseException) -> str:
    """The exception that all others in the chain came from, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if isinstance(error, ValidationError):
        text = "; ".join(str(each["msg"]) for each in error.errors())
    text = " ".join(text.split())
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            tell(record.exc_info[1])


def listen() -> None:
    """Let this worker process tell what ends it."""
    logging.getLogger(_WORKERS).addHandler(_Teller(logging.ERROR))
