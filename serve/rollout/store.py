"""Artifacts by digest: immutable copies of adapters and fitted parameters, which is all that engines ever load."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from serve.digest import DigestError, file_digest, folder_digest

MAX_FILES = 100
MAX_BYTES = 16 << 30
"""Of one adapter."""

_LATER_SCHEMES = ("s3", "gs", "hf")


class StoreError(ValueError):
    """Files that cannot be taken into the store, in one sentence for whoever named them."""


class OutsideRoots(StoreError):
    """A path that adapters may not come from."""


class Store:
    """A folder with `artifacts/<64 hex digits>/` and `parameters/<64 hex digits>`.

    What arrives is copied beside its place, verified, and renamed: an artifact is there as a whole
    or not at all. Files are read-only from then on."""

    def __init__(self, folder: Path, roots: Sequence[Path]) -> None:
        """`roots` are the folders that `file://` adapters may come from. Raises StoreError if the
        folder cannot be written."""
        self.folder = folder.resolve()
        self._roots = tuple(root.resolve() for root in roots)
        try:
            for name in ("artifacts", "parameters"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The store {folder} cannot be written ({error.strerror}); choose another --store."
            ) from error

    def adapter(self, digest: str) -> Path:
        """Where the adapter lies, or would lie."""
        return self.folder / "artifacts" / digest.removeprefix("sha256:")

    def parameters(self, digest: str) -> Path:
        """Where the file of fitted parameters lies, or would lie."""
        return self.folder / "parameters" / digest

    def has_adapter(self, digest: str) -> bool:
        return self.adapter(digest).is_dir()

    @contextmanager
    def fetch(self, uri: str) -> Iterator[Path]:
        """A private copy of the folder at a `file://` URI, gone at the end unless it was kept: what
        is checked is then what is kept, whatever happens at the source.

        Raises StoreError, and OutsideRoots for a path that leads out of the allowed roots."""
        with self.copied(self._source(uri)) as copy:
            yield copy

    @contextmanager
    def copied(self, source: Path) -> Iterator[Path]:
        """The same for a folder that is trusted by its place."""
        scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder / "artifacts"))
        try:
            try:
                _copy(source, scratch)
            except OSError as error:
                raise StoreError(f"{source} cannot be read: {error.strerror}.") from error
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def keep(self, copy: Path, expected: str | None = None) -> str:
        """Put a copy into its place; its digest. Raises StoreError if that is not `expected`, or if
        the artifact that is there already has changed."""
        try:
            digest = folder_digest(copy)
        except DigestError as error:
            raise StoreError(str(error)) from error
        if expected is not None and digest != expected:
            raise StoreError(f"The files have the digest {digest}, but {expected} was expected.")
        copy.chmod(0o755)
        try:
            copy.rename(self.adapter(digest))
        except OSError:
            self.verify(digest)  # the same content is there already, or has just arrived
        return digest

    def verify(self, digest: str) -> None:
        """Raises StoreError if the artifact is not there or has changed."""
        folder = self.adapter(digest)
        try:
            found = folder_digest(folder)
        except (DigestError, OSError) as error:
            raise StoreError(f"The store has no sound adapter {digest}: {error}") from error
        if found != digest:
            raise StoreError(
                f"The adapter {digest} has changed in the store; remove {folder} and start again."
            )

    def keep_parameters(self, file: Path) -> str:
        """Copy a file of fitted parameters; its SHA-256."""
        digest = file_digest(file)
        place = self.parameters(digest)
        if not place.exists():
            draft = place.with_name(f".new-{digest}-{os.getpid()}")
            shutil.copyfile(file, draft)
            draft.chmod(0o444)
            draft.replace(place)
        return digest

    def verify_parameters(self, digest: str) -> None:
        """Raises StoreError if the file is not there or has changed."""
        file = self.parameters(digest)
        if not file.is_file() or file_digest(file) != digest:
            raise StoreError(
                f"The fitted parameters {file} are missing or have changed; remove the file and "
                "start again."
            )

    def _source(self, uri: str) -> Path:
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise StoreError(f"{uri!r} is not a URI: {error}.") from error
        if parts.scheme in _LATER_SCHEMES:
            raise StoreError(f"{parts.scheme}:// is not served yet; use file:///absolute/folder.")
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise StoreError(f"{uri!r} is not a file:// URI; expected file:///absolute/folder.")
        if parts.query or parts.fragment:
            raise StoreError(f"{uri!r} must be a plain path; write ? and # as %3F and %23.")
        path = unquote(parts.path)
        if not path.startswith("/") or "\0" in path:
            raise StoreError(f"{uri!r} must hold an absolute path: file:///absolute/folder.")
        return self._allowed(uri, Path(path))

    def _allowed(self, uri: str, path: Path) -> Path:
        """The real path. Whether it exists is only said below a root."""
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:
            raise OutsideRoots(f"{uri} cannot be followed.") from error
        if not any(real.is_relative_to(root) for root in self._roots):
            raise OutsideRoots(
                f"{uri} is outside the folders that adapters may come from: the bundles and each "
                "--adapter-root."
            )
        if not real.is_dir():
            raise StoreError(f"{uri} is not a folder.")
        return real


def _copy(source: Path, target: Path) -> None:
    """Copy a folder without following links, and give up on what is too much to be an adapter.

    Raises StoreError and OSError."""
    files, size = 0, 0
    for folder, folders, names in os.walk(source):
        for name in (*folders, *names):
            entry = Path(folder, name)
            status = entry.lstat()
            relative = entry.relative_to(source)
            if stat.S_ISDIR(status.st_mode):
                (target / relative).mkdir()
                continue
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(
                    f"{relative} in {source.name} is a link or no regular file; an adapter consists "
                    "of plain files."
                )
            files, size = files + 1, size + status.st_size
            if files > MAX_FILES or size > MAX_BYTES:
                raise StoreError(
                    f"{source.name} is too large for an adapter: at most {MAX_FILES} files and "
                    f"{MAX_BYTES >> 30} GiB are taken."
                )
            _copy_file(entry, target / relative)


def _copy_file(source: Path, target: Path) -> None:
    """A file that became a link since it was looked at is refused by the system."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
    target.chmod(0o444)
