"""Says how the bundles of a start differ from what the database has active."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve.bundle import Bundle, BundleError
from serve.control.records import EnsembleRecord, VersionRecord
from serve.digest import file_digest
from serve.manifest import Ensemble


def same_content(record: EnsembleRecord, bundle: Bundle, ensemble: Ensemble) -> int | None:
    """The version of the database with the content of a bundle's manifest: the active one if it is among them, else the
    one of the same number, else the newest. None if there is none."""
    preferred = (record.active, ensemble.version, *sorted(record.versions, reverse=True))
    parameters = _parameters(bundle, ensemble)
    for number in preferred:
        version = record.versions.get(number)
        if version is None or _content(version.ensemble) != _content(ensemble):
            continue
        if parameters is None or version.parameters in (None, parameters):
            return number
    return None


def kept_ones(record: EnsembleRecord, versions: Mapping[int, tuple[Bundle, Ensemble]]) -> list[str]:
    """One sentence for each manifest that is not the version of its number in the database. The highest is left out:
    it has a version of its own."""
    return [
        f"{ensemble.id} in {bundle.path} is not the version {number} that the database has; the database's is kept."
        for number, (bundle, ensemble) in sorted(versions.items())
        if number != max(versions)
        and _content(record.versions[number].ensemble) != _content(ensemble)
    ]


@dataclass(frozen=True)
class NotServed:
    """A version that a start has brought while the store has another one active."""

    version: int
    active: int
    """The active version at the start."""
    said: str
    """Both versions, with their digests, in one sentence."""

    @classmethod
    def of(cls, record: EnsembleRecord, number: int, bundle: Bundle) -> "NotServed | None":
        """None if the version that the start has brought is active."""
        if number == record.active:
            return None
        active, came = record.active_version, record.versions[number]
        names = [member.name for member in came.ensemble.members]
        differ = [name for name in names if _adapters(active, name) != _adapters(came, name)]
        if differ:
            served = ", ".join(f"{name} {_adapters(active, name)}" for name in differ)
            brought = ", ".join(f"{name} {_adapters(came, name)}" for name in differ)
            brought += f", from {_places(came, differ, bundle)}"
        else:
            served = "the same adapters"
            brought = f"another fusion, labels or template, from {bundle.path}"
        said = (
            f"version {record.active} of the store answers ({served}), and not version {number}, which this start "
            f"brought ({brought})."
        )
        return cls(number, record.active, said)

    def command(self, name: str) -> str:
        """The command that makes the version active that the start has brought."""
        return f"choir swap {name} --version {self.version}"


def _content(ensemble: Ensemble) -> Ensemble:
    """A manifest without what says nothing of its answers: number, scores, and the place of its parameters."""
    fusion = ensemble.fusion.model_copy(update={"parameters": None})
    return ensemble.model_copy(update={"version": 0, "scores": {}, "fusion": fusion})


def _parameters(bundle: Bundle, ensemble: Ensemble) -> str | None:
    """The SHA-256 of the fitted parameters; None if there are none, or if the bundle has lost them."""
    try:
        file = bundle.fusion_path(ensemble)
    except BundleError:
        return None
    return None if file is None else file_digest(file)


def _places(version: VersionRecord, members: Sequence[str], bundle: Bundle) -> str:
    """The bundle, or the folders that it was packed from if it says so."""
    uris = [each.uri for name in members for each in version.origins.get(name, ())]
    inside = f"{bundle.path.as_uri()}/"
    apart = [uri for uri in uris if uri is not None and not uri.startswith(inside)]
    return ", ".join(apart) or str(bundle.path)


def _adapters(version: VersionRecord, name: str) -> str:
    """The adapters of a member, by the first 12 digits of their digests."""
    member = next((each for each in version.ensemble.members if each.name == name), None)
    if member is None:
        return "no such member"
    digests = [ref.digest.removeprefix("sha256:")[:12] for ref in member.adapters]
    return " + ".join(digests) or "the base alone"
