"""Defines the command `tenantry run NAME -- images check`."""

from pathlib import Path

import click
from flask import current_app
from flask.cli import with_appcontext

from tenantry import db

from .consistency import MIN_AGE_S, ImageConsistencyModel
from .models import MissingContentError


@click.command("check")
@click.option(
    "--fix",
    "--mend",
    "fix",
    is_flag=True,
    help="Remove files without a row, and rows without a file.",
)
@click.option(
    "--older-than",
    "min_age_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=MIN_AGE_S,
    show_default=True,
    help="Ignore files that are newer than this number of seconds.",
)
@click.option("--hash", "is_thorough", is_flag=True, help="Compare content, not only sizes.")
@with_appcontext
def check(fix: bool, min_age_s: float, is_thorough: bool) -> None:
    """Compare the rows of images in the database with the image files.

    The exit code is 1 if a difference is found and not fixed. You can run this command while the
    tenant serves requests.
    """
    folder = Path(current_app.instance_path, "images")
    model = ImageConsistencyModel(
        db.session, folder, fix=fix, min_age_s=min_age_s, is_thorough=is_thorough
    )
    found = fixed = 0
    try:
        for item in model.inconsistencies():
            click.echo(f"{item.description}: {item.subject}{' (fixed)' if item.is_fixed else ''}")
            found += 1
            fixed += item.is_fixed
    except MissingContentError as error:
        raise click.ClickException(
            f"The database has images, but {folder} has no files. Is the volume mounted?"
        ) from error
    click.echo(f"{found} found, {fixed} fixed.")
    if fixed < found:
        raise click.exceptions.Exit(1)
