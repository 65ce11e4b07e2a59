"""The bundle: the folder that training writes and serving reads."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from serve.adapter import (
    ADAPTER_FILES,
    CONVERT,
    DEFAULT_RANK_LIMIT,
    belongs,
)
from serve.base.folder import BaseError, BaseKind, BaseShapes, check_served, kind_of, read_config
from serve.digest import folder_digest
from serve.errors import UserError, did_you_mean
from serve.files import no_folder, write_atomically
from serve.fusion.fitting.stored_scores import FOLDER, ValidationScores
from serve.manifest import AdapterRef, Contract, Ensemble, Name, explain
from serve.servable import ensemble_problems

RUNGS = "rungs"
"""Folder of manifests that can be swapped in under an ensemble's name, such as its members merged into one adapter.
They are checked like all manifests, and not imported."""
_NAME: TypeAdapter[str] = TypeAdapter(Name)


SOURCE = ".source"
"""Suffix of the file beside an adapter that says which folder it was copied from."""


class BundleError(UserError, ValueError):
    """A bundle that cannot be read or written. The message is for its owner."""


class BaseSpec(Contract):
    """Where the base is: a folder (absolute, or relative to the bundle), or a hub id and a revision."""

    path: Annotated[str, Field(min_length=1)] | None = None
    id: Annotated[str, Field(min_length=1)] | None = None
    revision: str | None = None
    kind: BaseKind | None = None

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.path is None) == (self.id is None):
            raise ValueError("give exactly one of 'path' and 'id'")
        if self.revision and self.id is None:
            raise ValueError("'revision' goes with 'id' only")
        return self


class BundleInfo(Contract):
    """`bundle.json`."""

    format: Literal[1]
    base: BaseSpec
    created: str | None = None
    choir: str | None = None


class Bundle:
    """A bundle on disk. Every write is atomic, and what is written never changes."""

    def __init__(self, path: Path, info: BundleInfo) -> None:
        self.path = path
        self.info = info

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Bundle":
        """Opens a bundle; manifests are read when they are needed. Raises BundleError if there is no readable
        `bundle.json`."""
        folder = Path(path)
        file = folder / "bundle.json"
        if not file.is_file():
            begun = (folder / ".choir-train").is_dir()
            ended = (
                " Its training has not got that far: go on with `choir train RECIPE --resume`."
                if begun
                else ""
            )
            lacking = f"{folder} is not a bundle: it has no bundle.json.{ended}"
            raise BundleError(lacking if folder.is_dir() else no_folder(folder, folder))
        try:
            return cls(folder.resolve(), BundleInfo.model_validate_json(file.read_bytes()))
        except ValidationError as error:
            raise BundleError(f"{file}: {explain(error)}.") from error
        except OSError as error:
            raise BundleError(f"{file} cannot be read: {error.strerror}.") from error

    @classmethod
    def create(cls, path: str | os.PathLike[str], base: BaseSpec) -> "Bundle":
        """Writes `bundle.json` into a new bundle. Raises BundleError if there is one already."""
        folder = Path(path)
        if (folder / "bundle.json").exists():
            raise BundleError(f"{folder} is a bundle already; choose another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        info = BundleInfo(format=1, base=base, created=created, choir=_choir_version())
        write_atomically(
            folder / "bundle.json", info.model_dump_json(indent=2, exclude_none=True) + "\n"
        )
        return cls(folder.resolve(), info)

    @property
    def base_source(self) -> str:
        """The base's folder, or its hub id."""
        if self.info.base.path is not None:
            return str((self.path / self.info.base.path).resolve())
        assert self.info.base.id is not None, "a base has a path or an id"
        return self.info.base.id

    @property
    def base_revision(self) -> str | None:
        return self.info.base.revision

    @property
    def base_folder(self) -> Path | None:
        """The base's folder; None if the base is on a hub."""
        return Path(self.base_source) if self.info.base.path is not None else None

    def base_kind(self) -> BaseKind:
        """Returns the kind that `bundle.json` gives, or else that of the base's `config.json`. Raises BundleError."""
        if self.info.base.kind:
            return self.info.base.kind
        try:
            return kind_of(read_config(self.base_folder or self._fetched_config()))
        except BaseError as error:
            raise BundleError(str(error)) from error

    def check_base(self) -> None:
        """Raises BaseError with the reason if no engine can serve the base. A base on a hub that is not on this machine
        is left to the engine, which has to fetch it."""
        kind, folder = self.base_kind(), self.base_on_disk()
        if folder is not None:
            check_served(read_config(folder), kind)

    def ensembles(self) -> list[Ensemble]:
        """Returns every version of every ensemble, sorted by name and version. Raises BundleError at the first unsound
        manifest."""
        return sorted(
            map(self._read, self._manifests()), key=lambda each: (each.name, each.version)
        )

    def ensemble(self, name: str, version: int | None = None) -> Ensemble:
        """Returns one version of an ensemble, by default the highest. Raises BundleError if there is none."""
        known = self.ensembles()
        found = [e for e in known if e.name == name and version in (None, e.version)]
        if not found:
            wanted = name if version is None else f"{name}@{version}"
            has = ", ".join(each.id for each in known) or "none"
            meant = did_you_mean(name, {each.name for each in known} - {name})
            raise BundleError(f"{self.path} has no ensemble {wanted}; it has: {has}.{meant}")
        return found[-1]

    def adapter_dir(self, ref: AdapterRef) -> Path:
        """Returns the folder of an adapter in the bundle. Raises BundleError if it is missing."""
        folder = self._below(adapter_path(ref))
        if not folder.is_dir():
            raise BundleError(
                f"{self.path} has no folder {adapter_path(ref)} for the digest {ref.digest}."
            )
        return folder

    def adapter_uri(self, ref: AdapterRef) -> str:
        """Returns the URI of the folder that an adapter came from: the one that `record_source` named, else its folder
        in this bundle, whether it is there or not."""
        folder = self.path.absolute() / adapter_path(ref)
        recorded = folder.with_suffix(SOURCE)
        if recorded.is_file():
            return recorded.read_text(encoding="utf-8", errors="replace")
        return folder.as_uri()

    def record_source(self, ref: AdapterRef, folder: Path) -> None:
        """Writes beside an adapter which folder it was copied from. For a bundle that is gone when its server ends: the
        place of such a bundle says nothing."""
        place = self.path / adapter_path(ref)
        place.with_suffix(SOURCE).write_text(folder.resolve().as_uri(), encoding="utf-8")

    def fusion_path(self, ensemble: Ensemble) -> Path | None:
        """Returns the file of an ensemble's fitted parameters; None if the manifest names none. Raises BundleError if
        it is missing."""
        if ensemble.fusion.parameters is None:
            return None
        file = self._below(ensemble.fusion.parameters)
        if not file.is_file():
            raise BundleError(
                f"{ensemble.id} needs {ensemble.fusion.parameters}, which {self.path} lacks."
            )
        return file

    def validation_scores(self, ensemble: str) -> ValidationScores:
        """Returns the stored outputs of the ensemble's members and candidates for the rows that its fusion was fitted
        on. Raises BundleError for a folder outside the bundle."""
        return ValidationScores(self._below(f"fusion/{ensemble}/{FOLDER}"))

    def add_adapter(self, name: str, source_dir: str | os.PathLike[str]) -> AdapterRef:
        """Copies an adapter into the bundle and returns it with its digest.

        The digest is that of `source_dir` if only an adapter and texts lie there. As in a swap, other files of a
        training run, such as checkpoints and optimizer states, are not copied. Raises BundleError for a wrong name or a
        folder without an adapter."""
        source = Path(source_dir)
        try:
            _NAME.validate_python(name)
        except ValidationError as error:
            raise BundleError(
                f"The adapter name {name!r} must match [a-z0-9][a-z0-9._-]{{0,62}}."
            ) from error
        missing = [file for file in ADAPTER_FILES[:2] if not (source / file).is_file()]
        if missing:
            raise BundleError(
                f"{source} is not an adapter: it has no {missing[0]} (pickle files are never read). {CONVERT}"
            )
        parent = self.path / "adapters" / name
        parent.mkdir(parents=True, exist_ok=True)
        with _scratch(parent) as scratch:
            for file in source.iterdir():
                if file.is_file() and belongs(file):
                    shutil.copyfile(file, scratch / file.name)
            ref = AdapterRef(adapter=name, digest=folder_digest(scratch))
            target = self.path / adapter_path(ref)
            if not target.exists():
                scratch.chmod(0o755)
                scratch.rename(target)
        return ref

    def write_ensemble(self, ensemble: Ensemble) -> Path:
        """Writes a manifest and returns its file. Does nothing if it is there already. Raises BundleError if the
        version exists with another content."""
        file = self.path / "ensembles" / ensemble.name / f"{ensemble.version}.json"
        if file.exists():
            if self._read(file) != ensemble:
                raise BundleError(
                    f"{ensemble.id} exists with another content, and versions never change."
                )
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, ensemble.model_dump_json(indent=2, exclude_none=True) + "\n")
        return file

    def verify(self, deep: bool = True, *, max_rank: int | None = DEFAULT_RANK_LIMIT) -> list[str]:
        """Returns every reason why serving would refuse the bundle, as sentences; none for a sound bundle.

        With `deep`, also reads every tensor of the adapters and compares their shapes with the base's. `max_rank` is
        the engine's limit."""
        problems = list(self._base_problems())
        ensembles: list[Ensemble] = []
        for file in self._manifests():
            try:
                ensembles.append(self._read(file))
            except BundleError as error:
                problems.append(str(error))
        if not ensembles and not problems:
            problems.append(f"{self.path} has no ensembles.")
        for ensemble in ensembles:
            problems.extend(ensemble_problems(self, ensemble, deep=deep, max_rank=max_rank))
        for file in self.rung_files():
            try:
                rung = self.read_rung(file)
            except BundleError as error:
                problems.append(str(error))
                continue
            # A rung of a higher rank keeps no engine from serving the bundle; a swap to it says what it needs.
            problems.extend(ensemble_problems(self, rung, deep=deep, max_rank=None))
        return list(dict.fromkeys(problems))

    def _base_problems(self) -> Iterator[str]:
        try:
            self.check_base()
            if self.base_folder is not None:
                BaseShapes.read(self.base_folder)
        except (BundleError, BaseError) as error:
            yield str(error)

    def rung_files(self, ensemble: str = "*") -> list[Path]:
        """Returns the manifests in `rungs/` of one ensemble, or of all."""
        return sorted(self.path.glob(f"{RUNGS}/{ensemble}/*.json"))

    def read_rung(self, file: Path) -> Ensemble:
        """Returns a manifest in `rungs/`. Raises BundleError if it is unsound or of another ensemble than its folder
        says."""
        ensemble = self._parsed(file)
        if file.parent.name != ensemble.name:
            raise BundleError(
                f"{file.relative_to(self.path)} is a manifest of {ensemble.name}; it must lie in "
                f"{RUNGS}/{ensemble.name}/."
            )
        return ensemble

    def _manifests(self) -> list[Path]:
        return sorted(self.path.glob("ensembles/*/*.json"))

    def _read(self, file: Path) -> Ensemble:
        ensemble = self._parsed(file)
        if (file.parent.name, file.name) != (ensemble.name, f"{ensemble.version}.json"):
            raise BundleError(
                f"{file.relative_to(self.path)} holds {ensemble.id}; its path must be "
                "ensembles/<name>/<version>.json."
            )
        return ensemble

    def _parsed(self, file: Path) -> Ensemble:
        where = file.relative_to(self.path)
        try:
            return Ensemble.model_validate_json(self._below(where).read_bytes())
        except ValidationError as error:
            raise BundleError(f"{where}: {explain(error)}.") from error
        except OSError as error:
            raise BundleError(f"{where} cannot be read: {error.strerror}.") from error

    def _below(self, relative: str | Path) -> Path:
        path = (self.path / relative).resolve()
        if not path.is_relative_to(self.path):
            raise BundleError(
                f"{relative} leads out of the bundle {self.path}; copy the files into it."
            )
        return path

    def base_on_disk(self) -> Path | None:
        """Returns the base's folder, or that of the hub's local cache; None if the base is not on this machine."""
        if self.base_folder is not None:
            return self.base_folder
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(self.base_source, "config.json", revision=self.base_revision)
        return Path(file).parent if isinstance(file, str) else None

    def _fetched_config(self) -> Path:
        """Returns a folder with the `config.json` of a base on a hub, from the local cache if it is there."""
        from huggingface_hub import hf_hub_download

        try:
            file = hf_hub_download(self.base_source, "config.json", revision=self.base_revision)
        except Exception as error:  # the hub's client raises its own, OSError's and httpx's
            raise BundleError(
                f"The config of the base {self.base_source} cannot be fetched "
                f"({type(error).__name__}); "
                'download the base and give its path, or say its "kind" in bundle.json.'
            ) from error
        return Path(file).parent


def adapter_path(ref: AdapterRef) -> str:
    """Returns the folder of an adapter, relative to the bundle's."""
    return f"adapters/{ref.adapter}/{ref.digest.removeprefix('sha256:')[:12]}"


def _choir_version() -> str | None:
    try:
        return metadata.version("choir-serve")
    except metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """Yields a new folder on the same disk as `parent`. It is removed at the end unless it was renamed."""
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
