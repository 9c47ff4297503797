"""what was said about a file when it was read, so that an unchanged one need not be read again"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("document", sa.Column("file_warned", sa.JSON(none_as_null=True), nullable=True))
