"""Where secrets come from. Runs in the loader process: imports little, keeps nothing.

A secret is looked up in the environment, in a file that the environment names, in systemd's
credentials folder, in a container's `/run/secrets` and in `<data>/secrets`, in this order.
"""

import os
import re

CONTAINER_SECRETS = "/run/secrets"
"""Where Docker, Podman and Kubernetes set-ups mount secrets by convention."""

NEW_SECRET_BYTES = 32
"""Randomness of a secret that we make: 256 bits, as HMAC-SHA256 can use at most."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SecretError(LookupError):
    """A secret is nowhere to be found, or its file cannot be read. The text never holds a value."""


def secret(name: str, *, create: bool = False) -> str:
    """Return the secret `name`, without its trailing newline.

    Args:
        name: a name that an environment variable can have.
        create: make a random one in `<data>/secrets` (mode 0600) when there is none. Meant for
            samples and for single machines: two machines would make two different secrets.

    Raises:
        SecretError: nothing found (the text lists where it looked), or a file is unreadable.
    """
    if not _NAME.fullmatch(name):
        raise SecretError(f"secret {name!r}: a name has letters, digits and underscores only.")
    if name in os.environ:
        return os.environ[name].rstrip("\r\n")
    looked = [f"environment variable {name}"]
    for path in _files(name):
        looked.append(path)
        if os.path.exists(path):
            return _read(name, path)
    if create:
        return create_secret(name)
    raise SecretError(
        f"no secret {name!r}. Looked at: {'; '.join(looked)}. "
        f"Set the variable, or write the secret into {secret_file(name)} (mode 0600)."
    )


def found_before(name: str) -> str:
    """Return where `secret` finds a value before it looks into `<data>/secrets`; "" if nowhere."""
    if name in os.environ:
        return f"environment variable {name}"
    return next((path for path in _files(name)[:-1] if os.path.exists(path)), "")


def secret_file(name: str, data_dir: str = "") -> str:
    """Return the path of `name` in `<data>/secrets`; `<data>` as the host's environment has it."""
    data_dir = data_dir or os.environ.get("TENANTRY_DATA_DIR") or "instance"
    return os.path.join(data_dir, "secrets", name)


def create_secret(name: str, data_dir: str = "") -> str:
    """Make a random secret in `<data>/secrets`, mode 0600, and return the one that is there after.

    Safe to call from several processes at once: the first whole file wins, the others read it.

    Raises:
        SecretError: the file cannot be written or read.
    """
    path = secret_file(name, data_dir)
    unfinished = f"{path}.{os.urandom(8).hex()}.new"  # two threads, too, write one each
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(fd, "w") as file:
                file.write(os.urandom(NEW_SECRET_BYTES).hex() + "\n")
            os.link(unfinished, path)
        except FileExistsError:
            pass  # another one was first: its secret counts
        finally:
            os.unlink(unfinished)
    except OSError as error:
        raise SecretError(f"secret {name!r}: cannot make {path}: {error.strerror}.") from error
    return _read(name, path)


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
