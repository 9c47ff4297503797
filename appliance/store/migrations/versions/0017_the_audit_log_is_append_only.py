"""the database itself refuses to change or delete entries of the audit log"""

from alembic import op

from appliance.store.append_only import protect

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    protect(op.get_bind())
