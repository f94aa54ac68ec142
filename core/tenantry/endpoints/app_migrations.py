"""Finds the folder that `MIGRATIONS` names, without running its code."""

from pathlib import Path

from tenantry.endpoints.finding import find_writable


def migrations_folder(value: str, app_dir: str) -> Path:
    """Return the folder of Alembic or Flask-Migrate that `MIGRATIONS` names.

    Args:
        value: the path in the tenant file, relative to `app_dir`.
        app_dir: the tenant's `APP_DIR`.

    Raises:
        ValueError: there is no such folder, the folder lacks `env.py` or `versions`, or every user
            of the machine can change its code.
    """
    folder = Path(app_dir, value).absolute()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; write the path relative to APP_DIR")
    expected = "expected a folder that 'flask db init' or 'alembic init' has created"
    if not (folder / "env.py").is_file():
        raise ValueError(f"{folder} has no file env.py; {expected}")
    if not (folder / "versions").is_dir():
        raise ValueError(f"{folder} has no folder versions; {expected}")
    writable = find_writable(migrations_paths(folder))
    if writable is not None:
        raise ValueError(f"every user can write to {writable}; run: chmod o-w '{writable}'")
    return folder


def migrations_paths(folder: Path) -> list[Path]:
    """Return the code in a folder of migrations: its folders, `env.py` and the revision files."""
    versions = folder / "versions"
    return [folder, folder / "env.py", versions, *sorted(versions.glob("*.py"))]
