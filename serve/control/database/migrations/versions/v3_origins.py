"""Where the adapters of each version came from, and the URIs of each change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"

BUNDLE = "bundle:"
"""How the source of a version begins that came with a bundle."""
VERSIONS = sa.table(
    "versions",
    sa.column("ensemble", sa.String),
    sa.column("version", sa.Integer),
    sa.column("manifest", sa.JSON),
    sa.column("source", sa.Text),
    sa.column("origins", sa.JSON),
    sa.column("created", sa.String),
)


def upgrade() -> None:
    """Add the columns, and fill in what the other columns say.

    What was not recorded is unknown: the URIs of swapped adapters, and all URIs of rollouts and of the audit. Who
    swapped an adapter in, and when, is what the first version with it says."""
    for table, column in (("versions", "origins"), ("rollouts", "uris"), ("audit", "uris")):
        op.add_column(table, sa.Column(column, sa.JSON, nullable=False, server_default="{}"))
    connection = op.get_bind()
    query = sa.select(VERSIONS).order_by(VERSIONS.c.created, VERSIONS.c.version)
    first: dict[tuple[str, str], sa.Row[Any]] = {}
    for row in connection.execute(query).all():
        for _, ref in _adapters(row):
            first.setdefault((row.ensemble, ref["digest"]), row)
        origins: dict[str, list[dict[str, str | None]]] = {
            member["name"]: [] for member in row.manifest["members"]
        }
        for member, ref in _adapters(row):
            origins[member].append(_origin(ref, first[row.ensemble, ref["digest"]]))
        connection.execute(
            sa.update(VERSIONS)
            .where(VERSIONS.c.ensemble == row.ensemble, VERSIONS.c.version == row.version)
            .values(origins=origins)
        )


def _adapters(row: sa.Row[Any]) -> Iterator[tuple[str, dict[str, str]]]:
    for member in row.manifest["members"]:
        for ref in member.get("adapters", ()):
            yield member["name"], ref


def _origin(ref: dict[str, str], row: sa.Row[Any]) -> dict[str, str | None]:
    if row.source.startswith(BUNDLE):
        hexadecimal = ref["digest"].removeprefix("sha256:")
        bundle = Path(row.source.removeprefix(BUNDLE))
        folder = bundle / "adapters" / ref["adapter"] / hexadecimal[:12]
        uri = folder.as_uri() if folder.is_absolute() else None
        return {"uri": uri, "swapped_by": None, "swapped_at": None}
    return {"uri": None, "swapped_by": row.source, "swapped_at": row.created}
