"""The table that tells whether the last write was committed."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Create the table. Its row comes with the next write."""
    op.create_table(
        "last_write",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("life", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
    )
