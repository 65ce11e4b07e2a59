"""Artifacts by digest: immutable copies of adapters and fitted parameters, which is all that engines ever load."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve.digest import DigestError, file_digest, folder_digest
from serve.errors import UserError
from serve.files import write_atomically


class StoreError(UserError, ValueError):
    """Files that cannot be taken into the store, in one sentence for whoever named them."""


class Store:
    """A folder with `artifacts/<64 hex digits>/` and `parameters/<64 hex digits>`.

    What arrives is copied beside its place, verified, and renamed: an artifact is there as a whole
    or not at all. Files are read-only from then on."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError if the folder cannot be written."""
        self.folder = folder.resolve()
        try:
            for name in ("artifacts", "parameters"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob("artifacts/.new-*"):  # by a server that was killed
                shutil.rmtree(left, ignore_errors=True)
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
    def scratch(self) -> Iterator[Path]:
        """An empty folder to copy into, gone at the end unless it was kept: what is checked is then
        what is kept, whatever happens at the source."""
        folder = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder / "artifacts"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

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
            write_atomically(place, file.read_bytes(), mode=0o444)
        return digest

    def verify_parameters(self, digest: str) -> None:
        """Raises StoreError if the file is not there or has changed."""
        file = self.parameters(digest)
        if not file.is_file() or file_digest(file) != digest:
            raise StoreError(
                f"The fitted parameters {file} are missing or have changed; remove the file and "
                "start again."
            )
