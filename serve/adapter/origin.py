"""The base that an adapter was trained on, as `choir.json` beside its weights says."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from serve.adapter.plain_json import read_object
from serve.digest import file_digest
from serve.errors import UserError

ORIGIN = "choir.json"


class OriginError(UserError, ValueError):
    """An adapter of another base. The message is one sentence."""


def record_base(folder: Path, base: Path) -> None:
    """Writes the base's digest beside an adapter that was trained on it."""
    (folder / ORIGIN).write_text(json.dumps({"base": base_digest(base)}) + "\n", encoding="utf-8")


def check_base(folder: Path, base: Path | None) -> None:
    """Compares the base that an adapter recorded with the base that it would be served on. Does nothing if either is
    not known. Raises OriginError if they differ or the record is unsound."""
    file = folder / ORIGIN
    if not file.is_file():
        return
    try:
        recorded = read_object(file).get("base")
    except ValueError as error:
        raise OriginError(f"{ORIGIN} {error}.") from error
    if recorded is None or base is None:
        return
    found = base_digest(base)
    if recorded != found:
        raise OriginError(
            f"It was trained on another base: {ORIGIN} says {str(recorded)[:80]!r}, and the weights that are served "
            f"have the digest {found}."
        )


@lru_cache
def base_digest(folder: Path) -> str:
    """Returns `sha256:` and the SHA-256 over one line for each of the base's weight files, `<sha256><two
    spaces><name>\\n`, in the order of their names. It is computed once for a folder, because a base does not change
    while it is used.

    Only the weights count: adapters belong to them, and a model's folder collects other files."""
    lines = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        lines.update(f"{file_digest(file)}  {file.name}\n".encode())
    return f"sha256:{lines.hexdigest()}"
