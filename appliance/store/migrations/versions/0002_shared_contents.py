"""a text is stored once for all documents that have it; language and flags of chunks; live chunks of segments"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Code points of a stored piece of text.
_PIECE = 16_384


def upgrade() -> None:
    _create()
    _move_texts()
    with op.batch_alter_table("document_version") as table:
        table.add_column(sa.Column("content_id", sa.Integer()))
    op.execute("UPDATE document_version SET content_id = id")
    with op.batch_alter_table("document_version") as table:
        table.alter_column("content_id", existing_type=sa.Integer(), nullable=False)
        table.create_foreign_key("fk_document_version_content_id", "content", ["content_id"], ["id"])
        table.create_index("ix_document_version_content_id", ["content_id"])
        table.drop_constraint("uq_document_version_content", type_="unique")
        table.create_unique_constraint("uq_document_version_content", ["domain", "doc_id", "recipe", "content_id"])
        table.drop_column("text")
    with op.batch_alter_table("document") as table:
        table.create_index("ix_document_version_id", ["version_id"])
    with op.batch_alter_table("chunk") as table:
        table.drop_index("ix_chunk_version_id")
        table.drop_constraint("fk_chunk_version_id", type_="foreignkey")
        table.alter_column("version_id", new_column_name="content_id", existing_type=sa.Integer())
        # What was flagged and which language a chunk has is found at the next ingest, which makes every document anew.
        table.add_column(sa.Column("lang", sa.String(8), nullable=False, server_default=""))
        table.add_column(sa.Column("flags", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("chunk") as table:
        table.create_foreign_key("fk_chunk_content_id", "content", ["content_id"], ["id"], ondelete="CASCADE")
        table.create_index("ix_chunk_content_id", ["content_id"])
        table.alter_column("lang", existing_type=sa.String(8), server_default=None)
        table.alter_column("flags", existing_type=sa.JSON(), server_default=None)
    with op.batch_alter_table("segment") as table:
        table.add_column(sa.Column("live", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("sha256", sa.String(64)))
    op.execute(
        "UPDATE segment SET live = (SELECT count(*) FROM chunk JOIN document_version ON document_version.content_id = chunk.content_id "
        "JOIN document ON document.version_id = document_version.id WHERE chunk.segment_id = segment.id)"
    )
    with op.batch_alter_table("segment") as table:
        table.alter_column("live", existing_type=sa.Integer(), server_default=None)


def _create() -> None:
    op.create_table(
        "content",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("domain", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("lang", sa.String(8), nullable=False),
        sa.Column("chunks", sa.Integer()),
        sa.Column("signature", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("id", name="pk_content"),
    )
    op.create_index("ix_content_text", "content", ["domain", "sha256"])
    op.create_table(
        "content_text",
        sa.Column("content_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("part", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["content_id"], ["content.id"], name="fk_content_text_content_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("content_id", "part", name="pk_content_text"),
    )
    op.create_table(
        "content_band",
        sa.Column("band", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("content_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.ForeignKeyConstraint(["content_id"], ["content.id"], name="fk_content_band_content_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("band", "content_id", name="pk_content_band"),
    )
    op.create_index("ix_content_band_content_id", "content_band", ["content_id"])
    op.create_table(
        "embedding",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_embedding"),
    )


def _move_texts() -> None:
    """Each version becomes a content of its own with the version's number."""
    connection = op.get_bind()
    # Labels are those of the live document; what is not live is not shared with anything new.
    op.execute(
        "INSERT INTO content (id, domain, sha256, recipe, labels, title, lang, chunks) SELECT id, domain, sha256, recipe, "
        "coalesce((SELECT CAST(labels AS TEXT) FROM document WHERE document.version_id = document_version.id), ''), title, lang, "
        "(SELECT count(*) FROM chunk WHERE chunk.version_id = document_version.id) FROM document_version"
    )
    if connection.dialect.name == "postgresql":
        op.execute("SELECT setval(pg_get_serial_sequence('content', 'id'), coalesce((SELECT max(id) FROM content), 0) + 1, false)")
    for (id,) in connection.execute(sa.text("SELECT id FROM document_version")).all():
        text = connection.execute(sa.text("SELECT text FROM document_version WHERE id = :id"), {"id": id}).scalar_one()
        pieces = [{"content_id": id, "part": at // _PIECE, "text": text[at : at + _PIECE]} for at in range(0, len(text), _PIECE)]
        if pieces:
            connection.execute(sa.text("INSERT INTO content_text (content_id, part, text) VALUES (:content_id, :part, :text)"), pieces)
