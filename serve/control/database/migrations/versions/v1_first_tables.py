"""The tables of the releases 0.1.0 and 0.2.0."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "control",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("life", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
    )
    op.create_table(
        "ensembles",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("active", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("previous", sa.JSON, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("ensemble", sa.String(63), sa.ForeignKey("ensembles.name"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("parameters", sa.String(64)),
        sa.Column("allow_stale_fusion", sa.Boolean, nullable=False),
        sa.Column("fitted_on", sa.JSON),
        sa.Column("left_at_epoch", sa.Integer),
        sa.Column("created", sa.String(40), nullable=False),
    )
    op.create_table(
        "rollouts",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column(
            "ensemble", sa.String(63), sa.ForeignKey("ensembles.name"), nullable=False, index=True
        ),
        sa.Column("from_version", sa.Integer, nullable=False),
        sa.Column("to_version", sa.Integer, nullable=False),
        sa.Column("strategy", sa.JSON, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("decision", sa.String(32)),
        sa.Column("decided_by", sa.Text),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.Column("state", sa.String(32), nullable=False, index=True),
        sa.Column("reason", sa.Text),
        sa.Column("replicas", sa.JSON, nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
        sa.Column("updated", sa.String(40), nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("ensemble", sa.String(63), nullable=False, index=True),
        sa.Column("from_version", sa.Integer),
        sa.Column("to_version", sa.Integer),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text),
    )
