"""The digest of a folder, which is an adapter's identity everywhere."""

import hashlib
import os
from pathlib import Path

from serve.errors import UserError
from serve.files import no_folder

_CHUNK = 1 << 20


class DigestError(UserError, ValueError):
    """A folder that has no digest. The message is for the person who made it."""


def folder_digest(path: str | os.PathLike[str]) -> str:
    """`sha256:` and the SHA-256 over one line a file, `<sha256><two spaces><relative path>\\n`, in
    byte order of paths.

    This is what `find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum`
    prints inside the folder. Raises DigestError if the folder is missing or empty, or holds a
    symbolic link (`find` passes over links, so what they point to could change under an unchanged
    digest) or a name with a line break or backslash.
    """
    root = Path(path)
    if not root.is_dir():
        raise DigestError(no_folder(root, root))
    lines = hashlib.sha256()
    files = sorted(_files(root), key=lambda file: os.fsencode(file.relative_to(root)))
    if not files:
        raise DigestError(f"{root} is empty: a digest needs at least one file.")
    for file in files:
        name = os.fsencode(file.relative_to(root))
        _check_name(name, root)
        lines.update(file_digest(file).encode() + b"  " + name + b"\n")
    return f"sha256:{lines.hexdigest()}"


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            content.update(chunk)
    return content.hexdigest()


def _check_name(name: bytes, root: Path) -> None:
    """Raises DigestError for a name with a line break or backslash: a name of two lines could pass for two files, and
    `sha256sum` escapes such names."""
    if b"\n" in name or b"\r" in name or b"\\" in name:
        raise DigestError(
            f"{root} holds a file whose name has a line break or backslash: {name!r}."
        )


def _files(root: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            entry = Path(folder, name)
            if entry.is_symlink():
                raise DigestError(
                    f"{entry} is a symbolic link; copy the file or folder that it points to."
                )
            if name in names:
                if not entry.is_file():
                    raise DigestError(f"{entry} is not a regular file.")
                found.append(entry)
    return found
