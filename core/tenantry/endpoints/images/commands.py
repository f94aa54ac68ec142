"""`tenantry run NAME -- images check`."""

from pathlib import Path

import click
from flask import current_app
from flask.cli import with_appcontext

from tenantry.database.session import db

from .checks import SETTLED_S, ImageCheckModel
from .models import MissingContentError


@click.command("check")
@click.option("--mend", is_flag=True, help="Remove files without a row and rows without a file.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=SETTLED_S,
    show_default=True,
    help="Leave younger files alone, in seconds.",
)
@click.option("--hash", "is_thorough", is_flag=True, help="Read all files, not their sizes only.")
@with_appcontext
def check(mend: bool, older_than: float, is_thorough: bool) -> None:
    """Compare the images' rows with their files; exit code 1 if something is wrong and stays.

    Safe while the tenant is served.
    """
    folder = Path(current_app.instance_path, "images")
    model = ImageCheckModel(
        db.session, folder, mend=mend, settled_s=older_than, is_thorough=is_thorough
    )
    count = left = 0
    try:
        for finding in model.findings():
            click.echo(f"{finding.what}: {finding.subject}{' (mended)' * finding.is_mended}")
            count += 1
            left += not finding.is_mended
    except MissingContentError as error:
        text = f"{folder} has no files, but there are images; is a volume not mounted?"
        raise click.ClickException(text) from error
    click.echo(f"{count} found, {count - left} mended.")
    if left:
        raise click.exceptions.Exit(1)
