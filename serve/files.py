"""Writes files whole or not at all, and says which folder is not there."""

import contextlib
import os
import tempfile
from pathlib import Path

MODE = 0o644
"""What a new file may be used for: read by all, written by its owner."""


def write_atomically(file: Path, content: str | bytes, mode: int = MODE) -> None:
    """Writes `content` (text as UTF-8) into `file`, and makes its folder if there is none.

    A reader sees the old file or the new one, also after a crash, because the new file is on the disk before it
    replaces the old one. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".new-")
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content.encode() if isinstance(content, str) else content)
            out.flush()
            os.fsync(out.fileno())
        draft.chmod(mode)
        draft.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def no_folder(name: str | os.PathLike[str], path: Path) -> str:
    """Returns the sentence for a `path` that is not a folder. `name` is what the reader wrote."""
    return f"{name} is not a folder." if path.exists() else f"There is no folder {name}."
