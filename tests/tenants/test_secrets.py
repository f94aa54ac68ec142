"""`secret()` finds or creates secrets in a documented order of places."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import tenantry.tenants.secrets
from commands import Tenantry
from tenantry.tenants.secrets import SecretError, create_secret, secret, secret_file

NAME = "ACME_SECRET_KEY"
Place = Callable[[str], None]


@pytest.fixture(name="places")
def _places(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Place]:
    """Return all places of a secret in lookup order, each with a function that stores a secret."""
    monkeypatch.setattr(tenantry.tenants.secrets, "CONTAINER_SECRETS", str(tmp_path / "run"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    for folder in (tmp_path / "run", tmp_path / "credentials", data_dir / "secrets"):
        folder.mkdir(parents=True)

    def fill_named_file(value: str) -> None:
        (tmp_path / "named").write_text(value)
        monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "named"))

    return {
        "variable": lambda value: monkeypatch.setenv(NAME, value),
        "named file": fill_named_file,
        "systemd": lambda value: _write(tmp_path / "credentials" / NAME, value),
        "container": lambda value: _write(tmp_path / "run" / NAME, value),
        "data": lambda value: _write(data_dir / "secrets" / NAME, value),
    }


def _write(path: Path, value: str) -> None:
    path.write_text(value)


@pytest.mark.parametrize("first", range(5))
def test_the_first_place_counts(places: dict[str, Place], first: int) -> None:
    """`secret()` returns the secret from the first place that has it."""
    for name in list(places)[first:]:
        places[name](f"from {name}\n")

    assert f"from {list(places)[first]}" == secret(NAME)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("place", ["variable", "data"])
def test_a_trailing_newline_is_removed(places: dict[str, Place], place: str, end: str) -> None:
    """`secret()` removes a trailing newline from a file, because editors add a newline."""
    places[place](f" a key {end}")

    assert " a key " == secret(NAME)


def test_an_error_lists_where_it_looked(
    places: dict[str, Place], tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for a missing secret lists all places in order, and the remedy."""
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "named"))

    with pytest.raises(SecretError) as caught:
        secret(NAME)

    looked = [
        f"environment variable {NAME}",
        str(tmp_path / "named"),
        str(tmp_path / "credentials" / NAME),
        str(tmp_path / "run" / NAME),
        str(data_dir / "secrets" / NAME),
    ]
    assert len(places) == len(looked)
    assert str(caught.value) == (
        f"no secret '{NAME}'. Looked at: {'; '.join(looked)}. "
        f"Set the variable, or write the secret into {looked[-1]} (mode 0600)."
    )
    assert [] == list((data_dir / "secrets").iterdir())


@pytest.mark.parametrize("name", ["", "a/b", "../key", "A B", "1A", "É", "A\n"])
def test_a_name_that_no_variable_can_have_is_rejected(name: str) -> None:
    """A secret's name cannot contain a path to another folder."""
    with pytest.raises(SecretError, match="letters, digits and underscores"):
        secret(name)


def test_a_file_that_is_not_text_is_named(places: dict[str, Place], data_dir: Path) -> None:
    """The error for a secret file that is not text names the file but shows none of its bytes."""
    del places
    path = data_dir / "secrets" / NAME
    path.write_bytes(b"\xff\xfehunter2")

    with pytest.raises(SecretError) as caught:
        secret(NAME)

    assert f"secret '{NAME}': cannot read {path}: it is not UTF-8 text." == str(caught.value)


def test_create_writes_a_file_for_its_owner_only(data_dir: Path) -> None:
    """`secret(create=True)` creates a missing secret once, in a file of mode 0600."""
    made = secret(NAME, create=True)

    path = data_dir / "secrets" / NAME
    assert made == secret(NAME)
    assert (64, set()) == (len(made), set(made) - set("0123456789abcdef"))
    assert (0o600, 0o700) == (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777)
    assert [path] == list(path.parent.iterdir())


def test_create_keeps_an_existing_secret(places: dict[str, Place], data_dir: Path) -> None:
    """`secret(create=True)` returns an existing secret, wherever it is."""
    places["systemd"]("an old one")

    assert "an old one" == secret(NAME, create=True)
    assert [] == list((data_dir / "secrets").iterdir())


def test_threads_that_create_at_once_get_the_same(data_dir: Path) -> None:
    """Threads that create the same secret at once get the same value."""
    start = threading.Barrier(8)
    made: list[str] = []

    def make() -> None:
        start.wait()
        made.append(create_secret(NAME))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [secret(NAME)] * 8 == made
    assert [data_dir / "secrets" / NAME] == list((data_dir / "secrets").iterdir())


@pytest.mark.usefixtures("data_dir")
def test_processes_that_create_at_once_get_the_same() -> None:
    """Processes that create the same secret at once get the same value."""
    script = f"from tenantry import secret; print(secret({NAME!r}, create=True))"
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]

    made = [process.communicate()[0].strip() for process in processes]

    assert [secret(NAME)] * 4 == made


def test_a_failure_to_create_leaves_nothing(data_dir: Path) -> None:
    """If a secret cannot be created, the error names the path, and no partial file stays behind."""
    path = data_dir / "secrets" / NAME
    path.mkdir(parents=True)

    with pytest.raises(SecretError, match=f"cannot read {path}: Is a directory"):
        create_secret(NAME)

    assert [path] == list(path.parent.iterdir())


def test_a_folder_that_cannot_be_created_is_named(data_dir: Path) -> None:
    """If the folder for secrets cannot be created, the error says which and why."""
    data_dir.write_text("")

    with pytest.raises(SecretError) as caught:
        secret(NAME, create=True)

    assert f"secret '{NAME}': cannot create {data_dir}/secrets/{NAME}: Not a directory." == str(
        caught.value
    )


def test_the_data_folder_defaults_to_instance() -> None:
    """The default data folder is `instance`; the environment or an argument can name another."""
    found = (secret_file(NAME), secret_file(NAME, "/data"))

    assert (f"instance/secrets/{NAME}", f"/data/secrets/{NAME}") == found


def test_the_error_names_the_credentials_of_a_running_service(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a systemd unit has the secret, the error names the folder of its credentials."""
    del data_dir
    monkeypatch.setattr(tenantry.tenants.secrets, "SERVICE_CREDENTIALS", str(tmp_path / "run"))
    folder = tmp_path / "run" / "tenantry.service"
    folder.mkdir(parents=True)
    (folder / NAME).write_text("a key")

    with pytest.raises(SecretError, match=f"set CREDENTIALS_DIRECTORY={folder}"):
        secret(NAME)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert "a key" == secret(NAME)


@pytest.mark.live
@pytest.mark.parametrize(
    "words",
    ["maintenance on acme", "maintenance off acme", "disable acme", "enable acme", "key acme web",
     "usage", "list"],
)  # fmt: skip
def test_commands_about_operation_need_no_secret(
    tenantry: Tenantry, write_tenant: Callable[..., Path], data_dir: Path, words: str
) -> None:
    """Commands that do not read the tenant file work outside the unit that has the secrets."""
    del data_dir
    write_tenant("acme", f"from tenantry import secret\nSECRET_KEY = secret('{NAME}')\n")

    assert 0 == tenantry(*words.split()).code
