"""scopes of keys; jobs, uploads and canaries"""

import sqlalchemy as sa
from alembic import op

from appliance.store.schema import UtcDateTime

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("api_key") as table:
        # Until now every key could ask, and none could do anything else.
        table.add_column(sa.Column("scopes", sa.JSON(), nullable=False, server_default='["chat"]'))
    op.create_table(
        "job",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("domain", sa.String(64)),
        sa.Column("resource", sa.String(160), nullable=False),
        sa.Column("arguments", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("actor", sa.String(120), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("cancelled_at", UtcDateTime()),
        sa.Column("process", sa.String(40)),
        sa.Column("heartbeat", UtcDateTime()),
        sa.Column("progress", sa.JSON()),
        sa.Column("log", sa.Text(), nullable=False),
        sa.Column("result", sa.JSON()),
        sa.Column("error", sa.Text()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("finished_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
    )
    op.create_index("ix_job_state", "job", ["state"])
    op.create_table(
        "upload",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("caller", sa.String(100), nullable=False),
        sa.Column("job", sa.String(40)),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_upload"),
    )
    op.create_table(
        "canary",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("domain", sa.String(64), nullable=False),
        sa.Column("candidate", sa.String(100), nullable=False),
        sa.Column("live", sa.String(100)),
        sa.Column("share", sa.Float(), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("looks", sa.JSON(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_canary"),
    )
    op.create_index("ix_canary_domain", "canary", ["domain"])
    op.create_table(
        "canary_count",
        sa.Column("canary", sa.String(40), nullable=False),
        sa.Column("side", sa.String(10), nullable=False),
        sa.Column("outcome", sa.String(10), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("canary", "side", "outcome", name="pk_canary_count"),
        sa.ForeignKeyConstraint(["canary"], ["canary.id"], name="fk_canary_count_canary", ondelete="CASCADE"),
    )
