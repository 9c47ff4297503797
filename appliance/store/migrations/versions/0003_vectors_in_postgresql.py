"""the tables of vectors, on PostgreSQL only: elsewhere they are files"""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import VECTOR

from appliance.store.postgres import require_pgvector

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    require_pgvector(op.get_bind())
    # SQLite's integers have 64 bits already.
    op.alter_column("document", "file_size", type_=sa.BigInteger())
    op.create_table(
        "vector_space",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("embedding_hash", sa.String(64), nullable=False),
        sa.Column("lang", sa.String(8), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("recall", sa.Float()),
        sa.UniqueConstraint("embedding_hash", "lang", name="uq_vector_space_embedding_hash"),
    )
    op.create_table(
        "vector_segment",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("description", sa.Text(), nullable=False),
    )
    op.execute("CREATE SEQUENCE vector_position")
    op.create_table(
        "vector_row",
        sa.Column("position", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("space", sa.Integer(), nullable=False),
        sa.Column("embedding", VECTOR(), nullable=False),
    )
    op.create_table(
        "vector_postings",
        sa.Column("segment", sa.String(40), sa.ForeignKey("vector_segment.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("part", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "vector_manifest",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("content", sa.Text(), nullable=False),
    )
