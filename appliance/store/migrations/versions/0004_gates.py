"""what was measured before an adapter version could go live"""

import sqlalchemy as sa
from alembic import op

from appliance.store.schema import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gate",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("adapter", sa.String(100), nullable=False),
        sa.Column("reference", sa.String(100)),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("checks", sa.JSON(), nullable=False),
        sa.Column("left_out", sa.JSON(), nullable=False),
        sa.Column("runs", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_gate"),
        sa.ForeignKeyConstraint(["adapter"], ["adapter.name"], name="fk_gate_adapter", ondelete="CASCADE"),
    )
    op.create_index("ix_gate_adapter", "gate", ["adapter"])
