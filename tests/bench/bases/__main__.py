"""Make docs/bases.md: which bases are served, as seen of a tiny model of each architecture.

`python -m tests.bench.bases` runs all of them, half a minute each on two cores; with names, those whose architecture
contains one of them, and keeps the other rows of the page."""

import argparse
import sys
import tempfile
from pathlib import Path

from serve.base.folder import BaseKind
from tests.bench.bases.candidates import CANDIDATES, Candidate
from tests.bench.bases.measure import difference
from tests.bench.bases.page import EQUAL, PAGE, Row, kinds, read, render, unserved


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bases", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names
    known = {(row.base, row.kind): row for row in read(_page())}
    wrong: list[str] = []
    for candidate in CANDIDATES:
        for kind in kinds(candidate):
            key = (candidate.name, kind)
            if key in known and names and not any(name in candidate.name for name in names):
                continue
            try:
                row = _seen(candidate, kind)
            except Exception as error:  # told at the end, after all others were seen
                wrong.append(f"{candidate.name} by {kind}: {type(error).__name__}: {error}")
                continue
            print(row.base, row.kind, row.reason or row.difference, flush=True)
            if row.difference is not None and row.difference > EQUAL:
                wrong.append(f"{candidate.name} by {kind} differs by {row.difference}")
                continue
            known[key] = row
            rows = [known[c.name, k] for c in CANDIDATES for k in kinds(c) if (c.name, k) in known]
            PAGE.write_text(render(rows), encoding="utf-8")
    for each in wrong:
        print(f"To be refused in serve/base/architectures.py, or mended: {each}")
    return int(bool(wrong))


def _page() -> str:
    return PAGE.read_text("utf-8") if PAGE.exists() else ""


def _seen(candidate: Candidate, kind: BaseKind) -> Row:
    if (reason := unserved(candidate, kind)) is not None:
        return Row(candidate.name, kind, reason, None)
    with tempfile.TemporaryDirectory() as scratch:
        return Row(candidate.name, kind, None, difference(candidate, kind, Path(scratch)))


if __name__ == "__main__":
    sys.exit(main())
