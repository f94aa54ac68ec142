"""What belongs to the name of a tenant: its secrets, its tenant file, and what a host remembers."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path

from tenantry.app.process_resources import RATES_FOLDER
from tenantry.errors import TenantryError
from tenantry.settings import HostSettings
from tenantry.tenants.last_good import forget_last_good
from tenantry.tenants.new_file import database_variable, mentioned_by, secret_variable
from tenantry.tenants.secrets import found_before, secret_file


def own_secrets(settings: HostSettings, name: str) -> list[str]:
    """Return the secrets in `<data>/secrets` that `new` or `restore` created for a tenant.

    A secret that the file of another tenant mentions is not part of the result.
    """
    return [
        variable
        for variable in (secret_variable(name), database_variable(name))
        if secret_path(settings, variable).is_file()
        and not found_before(variable)
        and not [owner for owner in mentioned_by(settings, variable) if owner != name]
    ]


def secret_path(settings: HostSettings, variable: str) -> Path:
    """Return the path of a secret in `<data>/secrets`."""
    return Path(secret_file(variable, str(settings.data_dir)))


def forget_name(settings: HostSettings, name: str) -> None:
    """Forget what a former tenant has served and counted, for a new tenant of the same name.

    The usage remains, because bills need the usage of former tenants.
    """
    # The import takes 0.3 s, so commands that only import this module skip it.
    from tenantry.middleware.rate_files import delete_counts  # noqa: PLC0415

    forget_last_good(settings.data_dir, name)
    delete_counts(settings.data_dir / RATES_FOLDER, name)


def renamed_text(
    source: bytes, secrets: Mapping[str, str], assignments: Mapping[str, object]
) -> str:
    """Return the text of a tenant file with other names of secrets, and with more assignments.

    Only calls such as `secret("SHOP_SECRET_KEY")` change. All other text stays unchanged.

    Args:
        source: the tenant file.
        secrets: maps the name of each secret to its new name.
        assignments: maps keys to texts or lists, which are assigned at the end of the file.

    Raises:
        TenantryError: the file is not valid Python.
    """
    try:
        tree = ast.parse(source)
        text = source.decode()
    except (SyntaxError, ValueError) as error:
        raise TenantryError(f"the tenant file cannot be read: {error}.") from error
    lines = [line.encode() for line in text.splitlines(keepends=True)]
    for literal in reversed(_secret_names(tree)):
        new = secrets.get(str(literal.value))
        if new is not None and literal.lineno == literal.end_lineno:
            line = lines[literal.lineno - 1]
            start, end = literal.col_offset, literal.end_col_offset
            lines[literal.lineno - 1] = line[:start] + f'"{new}"'.encode() + line[end:]
    text = b"".join(lines).decode()
    if text and not text.endswith("\n"):
        text += "\n"
    return text + "".join(f"{key} = {json.dumps(value)}\n" for key, value in assignments.items())


def _secret_names(tree: ast.AST) -> list[ast.Constant]:
    """Return the literal names in calls of `secret`, in the order of the text."""
    found = [
        node.args[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "secret"
        and node.args
    ]
    literals = [node for node in found if isinstance(node, ast.Constant)]
    return sorted(literals, key=lambda literal: (literal.lineno, literal.col_offset))
