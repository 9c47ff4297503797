"""tasks and scores of experts, and the queue of questions that need a person"""

import sqlalchemy as sa
from alembic import op

from appliance.store.schema import UtcDateTime

revision = "0013"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("answer") as table:
        table.add_column(sa.Column("refused", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("question_hash", sa.String(64), nullable=False, server_default=""))
        table.add_column(sa.Column("rule", sa.String(60), nullable=False, server_default=""))
    op.create_table(
        "expert_task",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("run", sa.String(40), nullable=False),
        sa.Column("item", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("domain", sa.String(64)),
        sa.Column("lang", sa.String(8), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("question", "answer_a", "answer_b")),
        *(
            sa.Column(name, sa.JSON(), nullable=False)
            for name in ("sources_a", "sources_b", "arms_a", "arms_b", "documents", "adapters", "labels")
        ),
        sa.Column("answered_at", UtcDateTime(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name="fk_expert_task_run", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_expert_task"),
    )
    op.create_index("ix_expert_task_run", "expert_task", ["run", "place"])
    op.create_table(
        "expert_work",
        sa.Column("task", sa.String(40), nullable=False),
        sa.Column("expert", sa.String(100), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("named", sa.Boolean(), nullable=False),
        sa.Column("scores", sa.JSON(), nullable=False),
        sa.Column("preference", sa.String(4), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("reason", "correction", "comment")),
        sa.Column("assigned_at", UtcDateTime(), nullable=False),
        sa.Column("done_at", UtcDateTime()),
        sa.ForeignKeyConstraint(["task"], ["expert_task.id"], name="fk_expert_work_task", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task", "expert", name="pk_expert_work"),
    )
    op.create_table(
        "review",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("domain", sa.String(64), nullable=False),
        sa.Column("question_hash", sa.String(64), nullable=False),
        sa.Column("question", sa.Text()),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.Column("rated_down", sa.Integer(), nullable=False),
        sa.Column("rule", sa.String(60), nullable=False),
        sa.Column("arm", sa.String(20), nullable=False),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in ("answers", "labels", "documents", "topics")),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("verified", sa.String(40)),
        sa.Column("duplicate_of", sa.String(40)),
        sa.Column("resolved_by", sa.String(100)),
        sa.Column("resolved_at", UtcDateTime()),
        sa.Column("first_seen", UtcDateTime(), nullable=False),
        sa.Column("last_seen", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_review"),
    )
    op.create_index("ix_review_last_seen", "review", ["last_seen"])
    op.create_index("uq_review_question", "review", ["domain", "question_hash"], unique=True)
