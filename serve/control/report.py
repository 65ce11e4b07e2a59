"""Finds the page of the report in the bundle that an ensemble came from."""

from collections.abc import Sequence
from pathlib import Path

from serve.bundle import Bundle
from serve.control.records import EnsembleRecord
from serve.errors import Refusal

PAGE = Path("report", "index.html")
MAX_BYTES = 16_000_000
"""The largest page that is sent. One that training writes has less than a megabyte."""


def report_page(record: EnsembleRecord, bundles: Sequence[Bundle]) -> bytes | Refusal:
    """Returns the page as HTML, from the bundle of the active version, or else of the newest version that came with a
    bundle. Refuses (404) if no bundle has one. Only `bundles` are read, and only the page's own place in them."""
    for bundle in _by_version(record, bundles):
        file = (bundle.path / PAGE).resolve()
        try:
            if file.is_relative_to(bundle.path) and file.stat().st_size <= MAX_BYTES:
                return file.read_bytes()
        except OSError:
            continue
    return Refusal(
        404,
        f"There is no report on {record.name}: no bundle of this server that holds it has a "
        f"{PAGE.as_posix()}, which `choir train` writes.",
        "no_report",
    )


def _by_version(record: EnsembleRecord, bundles: Sequence[Bundle]) -> list[Bundle]:
    """Returns the bundles that hold the ensemble, that of the active version first, and then the newest first."""
    numbers = [record.active, *sorted(record.versions, reverse=True)]
    sources = [record.versions[number].source for number in numbers if number in record.versions]
    own = [each for each in bundles if (each.path / "ensembles" / record.name).is_dir()]

    def place(bundle: Bundle) -> int:
        source = f"bundle:{bundle.path}"
        return sources.index(source) if source in sources else len(sources)

    return sorted(own, key=place)
