"""The manifests of rungs: whole ensembles that can be served under the ensemble's name.

They lie in `BUNDLE/rungs/ENSEMBLE/RUNG.json`, and their adapters in `BUNDLE/adapters/` as all others. Nothing there is
imported when the bundle is served: the highest version in `BUNDLE/ensembles/` becomes active. `choir swap ENSEMBLE
--manifest FILE` serves a rung as the next version.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from serve.bundle import RUNGS, Bundle, BundleError
from serve.files import write_atomically
from serve.manifest import Ensemble, Name, explain
from training.leaderboard.board import RungKind

SCORE = "rung"
"""The key in a manifest's `scores` under which a rung says what it is."""
MADE: tuple[RungKind, ...] = ("rival", "merged", "soup", "distilled")
"""The kinds with an adapter of their own. The others are written from the ensemble whenever it is judged."""
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_KIND: TypeAdapter[RungKind] = TypeAdapter(RungKind)


@dataclass(frozen=True)
class StoredRung:
    """A rung in a bundle."""

    name: str
    kind: RungKind
    manifest: Ensemble
    """A whole manifest under the ensemble's name. Its version is that of the ensemble it stands beside; a server gives
    it the next one."""


def rung_path(bundle: Path, ensemble: str, rung: str) -> Path:
    """Return the place of a rung's manifest in the bundle at `bundle`."""
    return bundle / RUNGS / ensemble / f"{rung}.json"


def rung_file(bundle: Bundle, ensemble: str, rung: str) -> Path:
    """Return the place of a rung's manifest in a bundle. Raises BundleError for a name that is no name."""
    for name in (ensemble, rung):
        try:
            _NAME.validate_python(name)
        except ValidationError as error:
            raise BundleError(
                f"The name {name!r} must match [a-z0-9][a-z0-9._-]{{0,62}}."
            ) from error
    return rung_path(bundle.path, ensemble, rung)


def write_rung(
    bundle: Bundle,
    rung: str,
    kind: RungKind,
    manifest: Ensemble,
    note: dict[str, Any] | None = None,
) -> Path:
    """Write a rung's manifest, in the place of an older one with the same name, and return its file.

    The adapters that the manifest names must be in the bundle already (`Bundle.add_adapter`). `note` is JSON that says
    how the rung was made; it is kept in the manifest's `scores`. Raises BundleError for a wrong name or a missing
    adapter."""
    file = rung_file(bundle, manifest.name, rung)
    for member in manifest.members:
        for ref in member.adapters:
            bundle.adapter_dir(ref)
    scores = {**manifest.scores, SCORE: {"kind": kind, **(note or {})}}
    content = manifest.model_copy(update={"scores": scores})
    write_atomically(file, content.model_dump_json(indent=2, exclude_none=True) + "\n")
    return file


def read_rungs(bundle: Bundle, ensemble: str) -> list[StoredRung]:
    """Return the rungs of an ensemble that have an adapter of their own, sorted by name. Raises BundleError for a
    manifest that is unsound or does not say its kind."""
    found = []
    for file in bundle.rung_files(ensemble):
        manifest = bundle.read_rung(file)
        said = manifest.scores.get(SCORE)
        try:
            kind = _KIND.validate_python(said.get("kind") if isinstance(said, dict) else None)
        except ValidationError as error:
            raise BundleError(
                f"{file.relative_to(bundle.path)} does not say in scores.{SCORE}.kind what it is: {explain(error)}."
            ) from error
        if kind in MADE:
            found.append(StoredRung(file.stem, kind, manifest))
    return found
