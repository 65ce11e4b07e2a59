"""Brings the tables of an earlier version of Choir up to date, without losing a row."""

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from serve.bundle import adapter_path
from serve.control.database.tables import AuditRow, RolloutRow, VersionRow, version_of
from serve.control.origins import Origin, origins_json
from serve.control.records import VersionRecord
from serve.manifest import AdapterRef

BUNDLE = "bundle:"
"""How the source of a version begins that came with a bundle."""

_NEW_COLUMNS = ((VersionRow, "origins"), (RolloutRow, "uris"), (AuditRow, "uris"))


def upgrade_from_2(session: Session) -> None:
    """Add what schema 3 has and schema 2 has not: where adapters came from.

    What was not recorded then is unknown: the URIs of swapped adapters, and all URIs of rollouts and of the audit.
    Who swapped an adapter in, and when, is what the first version with it says."""
    for table, column in _NEW_COLUMNS:
        session.execute(
            sa.text(
                f"ALTER TABLE {table.__tablename__} ADD COLUMN {column} JSON NOT NULL DEFAULT '{{}}'"
            )
        )
    rows = session.scalars(sa.select(VersionRow).order_by(VersionRow.created, VersionRow.version))
    first: dict[tuple[str, str], VersionRecord] = {}
    for row in rows.all():
        record = version_of(row)
        for digest in record.ensemble.digests:
            first.setdefault((row.ensemble, digest), record)
        row.origins = origins_json(dict(_recovered(record, first)))


def _recovered(
    record: VersionRecord, first: dict[tuple[str, str], VersionRecord]
) -> Iterator[tuple[str, tuple[Origin, ...]]]:
    name = record.ensemble.name
    for member in record.ensemble.members:
        yield (
            member.name,
            tuple(_origin(ref, first[name, ref.digest]) for ref in member.adapters),
        )


def _origin(ref: AdapterRef, record: VersionRecord) -> Origin:
    if record.source.startswith(BUNDLE):
        folder = Path(record.source.removeprefix(BUNDLE)) / adapter_path(ref)
        return Origin(folder.as_uri() if folder.is_absolute() else None)
    return Origin(None, record.source, record.created)
