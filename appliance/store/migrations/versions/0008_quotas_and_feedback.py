"""quotas of keys; answers given lately, and feedback on them"""

import sqlalchemy as sa
from alembic import op

from appliance.store.schema import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("api_key") as table:
        table.add_column(sa.Column("requests_per_minute", sa.Integer()))
        table.add_column(sa.Column("tokens_per_minute", sa.Integer()))
    op.create_table(
        "answer",
        sa.Column("id", sa.String(60), nullable=False),
        sa.Column("caller", sa.String(100), nullable=False),
        sa.Column("domain", sa.String(64), nullable=False),
        sa.Column("arm", sa.String(20), nullable=False),
        sa.Column("adapter", sa.String(100)),
        sa.Column("question", sa.Text()),
        sa.Column("answer", sa.Text()),
        sa.Column("documents", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_answer"),
    )
    op.create_index("ix_answer_created_at", "answer", ["created_at"])
    op.create_table(
        "feedback",
        sa.Column("answer_id", sa.String(60), nullable=False),
        sa.Column("caller", sa.String(100), nullable=False),
        sa.Column("domain", sa.String(64), nullable=False),
        sa.Column("arm", sa.String(20), nullable=False),
        sa.Column("adapter", sa.String(100)),
        sa.Column("rating", sa.String(10), nullable=False),
        sa.Column("question", sa.Text()),
        sa.Column("answer", sa.Text()),
        sa.Column("correction", sa.Text()),
        sa.Column("documents", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("answered_at", UtcDateTime(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("answer_id", name="pk_feedback"),
    )
    op.create_index("ix_feedback_domain", "feedback", ["domain"])
