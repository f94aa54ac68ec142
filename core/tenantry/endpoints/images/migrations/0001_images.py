"""Creates the table of images."""

import sqlalchemy as sa
from alembic import op

revision = "images_0001"
down_revision = None
branch_labels = ("images",)
depends_on = None


def upgrade() -> None:
    """Create the table of images."""
    op.create_table(
        "images",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("media_type", sa.String(16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
    )
    op.create_index("ix_images_sha256", "images", ["sha256"])


def downgrade() -> None:
    """Drop the table of images. The image files are kept, and `images check` can remove them."""
    op.drop_index("ix_images_sha256", "images")
    op.drop_table("images")
