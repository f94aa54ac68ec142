"""Reads and creates secrets.

`secret(NAME)` looks in these places, in this order: the environment, the file that `NAME_FILE`
names, systemd's credentials folder, a container's `/run/secrets`, and `<data>/secrets`. The module
imports little, because the loader process imports it and must start fast.
"""

import hashlib
import os
import re

CONTAINER_SECRETS = "/run/secrets"
"""The folder where Docker, Podman and Kubernetes conventionally mount secrets."""

SERVICE_CREDENTIALS = "/run/credentials"
"""The folder where systemd keeps the credentials of each running unit, for the unit's user."""

NEW_SECRET_BYTES = 32
"""Number of random bytes in a new secret: 256 bits, which nobody can guess."""

THROW_AWAY = "TENANTRY_THROW_AWAY_SECRETS"
"""Environment variable that prevents the tenant files of a loader process from creating secrets.

The value of the variable is random. Instead of creating a secret, a tenant file gets a hash of this
value and of the secret's name.
"""

INVENT_MISSING = "TENANTRY_INVENT_MISSING_SECRETS"
"""Environment variable of a loader process that runs tenant files for tests.

Every missing secret is a throw-away secret, even without `create=True`, because a machine that only
runs tests has no secrets.
"""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SecretError(LookupError):
    """A secret does not exist, or its file cannot be read. The message contains no secret."""


def secret(name: str, *, create: bool = False) -> str:
    """Return the secret `name`, without a trailing newline.

    Args:
        name: the name of the secret, which must be valid for an environment variable.
        create: whether to create a missing secret at random in `<data>/secrets` (mode 0600). Use
            `create` only for samples and single machines, because two machines would create
            different secrets.

    Raises:
        SecretError: the secret does not exist (the message lists the places), or its file cannot be
            read.
    """
    if not is_secret_name(name):
        raise SecretError(f"secret {name!r}: a name has only letters, digits and underscores.")
    if name in os.environ:
        return os.environ[name].rstrip("\r\n")
    searched = [f"environment variable {name}"]
    for path in _files(name):
        searched.append(path)
        if os.path.exists(path):
            return _read(name, path)
    if THROW_AWAY in os.environ and (create or INVENT_MISSING in os.environ):
        return hashlib.sha256(f"{os.environ[THROW_AWAY]} {name}".encode()).hexdigest()
    if create:
        return create_secret(name)
    raise SecretError(
        f"no secret {name!r}. Looked at: {'; '.join(searched)}. {_hint(name)}"
        f"Set the variable, or write the secret into {secret_file(name)} (mode 0600)."
    )


def is_secret_name(name: str) -> bool:
    """Whether a text is a valid name of a secret, and of an environment variable."""
    return _NAME.fullmatch(name) is not None


def found_before(name: str) -> str:
    """Return where `secret` finds a value before `<data>/secrets`, or "" if it finds no value."""
    if name in os.environ:
        return f"environment variable {name}"
    return next((path for path in _files(name)[:-1] if os.path.exists(path)), "")


def secret_file(name: str, data_dir: str = "") -> str:
    """Return the path of a secret in `<data>/secrets`, by default in the host's data folder."""
    data_dir = data_dir or os.environ.get("TENANTRY_DATA_DIR") or "instance"
    return os.path.join(data_dir, "secrets", name)


def create_secret(name: str, data_dir: str = "") -> str:
    """Return a secret from `<data>/secrets`. A missing secret is created at random.

    If several processes create a secret at the same time, all return the same value.

    Raises:
        SecretError: the file cannot be written or read.
    """
    path = secret_file(name, data_dir)
    unfinished = f"{path}.{os.urandom(8).hex()}.new"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(fd, "w") as file:
                file.write(os.urandom(NEW_SECRET_BYTES).hex() + "\n")
            os.link(unfinished, path)
        except FileExistsError:
            pass  # another process has just created the secret
        finally:
            os.unlink(unfinished)
    except OSError as error:
        raise SecretError(f"secret {name!r}: cannot create {path}: {error.strerror}.") from error
    return _read(name, path)


def _hint(name: str) -> str:
    """Return how to read the secret from the credentials of a running systemd unit, or ""."""
    try:
        units = sorted(os.listdir(SERVICE_CREDENTIALS))
    except OSError:
        return ""
    for folder in (os.path.join(SERVICE_CREDENTIALS, unit) for unit in units):
        if os.path.exists(os.path.join(folder, name)):
            return f"A running service has it: set CREDENTIALS_DIRECTORY={folder}. Otherwise: "
    return ""


def _files(name: str) -> list[str]:
    files = []
    if named := os.environ.get(f"{name}_FILE"):
        files.append(named)
    if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
        files.append(os.path.join(credentials, name))
    return [*files, os.path.join(CONTAINER_SECRETS, name), secret_file(name)]


def _read(name: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SecretError(f"secret {name!r}: cannot read {path}: {reason}.") from error
