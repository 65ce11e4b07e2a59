"""From here on, Alembic's own table says which tables a store has."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Raise the number that servers of before compare, so that they refuse the store with a sentence."""
    control = sa.table("control", sa.column("schema_version", sa.Integer))
    op.execute(sa.update(control).values(schema_version=4))
