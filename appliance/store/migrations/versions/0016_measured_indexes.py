"""how an index of vectors is searched, and at how many rows that was measured; on PostgreSQL only"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.add_column("vector_space", sa.Column("recall_questions", sa.Float()))
    op.add_column("vector_space", sa.Column("ef_search", sa.Integer()))
    op.add_column("vector_space", sa.Column("measured_rows", sa.BigInteger()))
    # What searches had until now, to be measured again at the next write: a row count of 0 has doubled already.
    op.execute("UPDATE vector_space SET recall_questions = recall, ef_search = 200, measured_rows = 0 WHERE recall IS NOT NULL")
