"""The loader converts tenant files to plain data, whatever the files do to the loader process."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

import tenantry.tenants.loader
from servers import DEADLINE_S
from tenantry.errors import TenantFileError
from tenantry.python_process import describe_exit
from tenantry.tenants.file import display_path
from tenantry.tenants.loader import Loader

WriteTenant = Callable[..., Path]
GOOD = "BLUEPRINTS = ['landing']\n"


@pytest.fixture(name="loader")
def _loader(data_dir: Path) -> Iterator[Loader]:
    """Return a loader. The fixture closes the loader after the test."""
    with Loader(data_dir=data_dir) as loader:
        yield loader


def _reasons(loader: Loader, path: Path, timeout_s: float | None = None) -> list[str]:
    """Return the problems of the file, without the path."""
    try:
        problems = loader.load(path, timeout_s=timeout_s).problems
    except TenantFileError as error:
        problems = error.problems
    return [str(problem).removeprefix(str(path)) for problem in problems]


VALUES: dict[str, object] = {
    "NONE": None,
    "BOOLS": [True, False],
    "INTS": [0, -1, 1 << 70, 10**4000],
    "FLOATS": [0.1, -1e300, float("inf")],
    "TEXTS": ["", "é\n\0\ud800 日本"],
    "BYTES": b"\x00\xff",
    "LISTS": [[], [[1]]],
    "TUPLES": ((), (1, (2,))),
    "DICTS": {"a": {1: (2.5, None)}, ("a", 1): b"b", None: {}},
    "SETS": {1, "a", (2, 3)},
    "DELTAS": timedelta(days=-1, seconds=2, microseconds=3),
    "TIMES": [datetime(2026, 2, 3, 4, 5, 6, 7), datetime(2026, 2, 3, tzinfo=UTC)],  # noqa: DTZ001
    "PATHS": Path("/srv/../a b"),
    "DECIMALS": [Decimal("1.10"), Decimal("-Infinity")],
}
IMPORTS = """
import datetime
from decimal import Decimal
from pathlib import Path as PosixPath
inf = float("inf")
"""


def test_every_plain_type_comes_back_as_it_was(loader: Loader, write_tenant: WriteTenant) -> None:
    """Loading a tenant file keeps the value and the type of all plain data."""
    path = write_tenant("acme", IMPORTS + "".join(f"{k} = {v!r}\n" for k, v in VALUES.items()))

    loaded = loader.load(path)

    assert VALUES == loaded.values
    assert repr({**VALUES, "SETS": None}) == repr({**loaded.values, "SETS": None})


def test_the_answer_names_what_was_read(loader: Loader, write_tenant: WriteTenant) -> None:
    """The loader returns the name, path and digest of the tenant file that it has read."""
    path = write_tenant("acme")

    loaded = loader.load(path)

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert ("acme", str(path), digest) == (loaded.name, loaded.file, loaded.digest)


def test_only_upper_case_names_come_back(loader: Loader, write_tenant: WriteTenant) -> None:
    """The loader returns only upper-case names of a tenant file, and no modules."""
    path = write_tenant("acme", "import os\nlower = os.sep\nMixed = 1\n_A1 = 2\nA = lower\n")

    assert {"_A1": 2, "A": "/"} == loader.load(path).values


def test_each_file_runs_in_a_fresh_namespace(loader: Loader, write_tenant: WriteTenant) -> None:
    """Each tenant file runs in a fresh namespace, and not as `__main__`."""
    loader.load(write_tenant("acme", "import json\njson.LEFT = LEFT = 1\n"))
    path = write_tenant(
        "globex",
        "import json, sys\n"
        "NAMES = [__name__, __file__, hasattr(json, 'LEFT'), 'LEFT' in globals()]\n"
        "IS_ON_PATH = __file__.rpartition('/')[0] in sys.path\n",
    )

    values = loader.load(path).values

    assert {"NAMES": ["tenant.globex", str(path), False, False], "IS_ON_PATH": False} == values
    assert ["acme.py", "globex.py"] == sorted(
        one.name for one in path.parent.iterdir()
    )  # the loader writes no bytecode cache


def test_no_code_of_a_file_runs_here(loader: Loader, write_tenant: WriteTenant) -> None:
    """A tenant file runs in a separate process, and its output is dropped."""
    path = write_tenant(
        "acme", "import os\nprint('x' * 10_000)\nPIDS = [os.getpid(), os.getppid()]"
    )

    first, second = loader.load(path).values["PIDS"], loader.load(path).values["PIDS"]

    assert os.getpid() not in (*first, *second)
    assert (True, True) == (first[1] == second[1], first[0] != second[0])


def test_a_secret_is_created_in_the_hosts_data_folder(
    write_tenant: WriteTenant, data_dir: Path
) -> None:
    """When a host loads a tenant file, `secret(create=True)` writes to the host's data folder."""
    path = write_tenant(
        "acme", "from tenantry import secret\nA = secret('ACME_KEY', create=True)\n"
    )

    with Loader(data_dir=data_dir, creates_secrets=True) as loader:
        values = loader.load(path).values

    assert {"A": (data_dir / "secrets/ACME_KEY").read_text().strip()} == values


def test_a_command_that_inspects_gets_a_secret_to_throw_away(
    loader: Loader, write_tenant: WriteTenant, data_dir: Path
) -> None:
    """Commands that inspect tenants replace a missing secret by a temporary value."""
    text = "from tenantry import secret\nA = secret('{}', create=True)\n"
    values = [
        loader.load(write_tenant(name, text.format(key))).values["A"]
        for name, key in (("acme", "ONE"), ("globex", "ONE"), ("initech", "OTHER"))
    ]

    assert (64, True, False) == (len(values[0]), values[0] == values[1], values[0] == values[2])
    assert not (data_dir / "secrets").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import os\nos.kill(os.getppid(), 9)", ": killed or stopped the loader process"),
        ("import os\nos.kill(os.getpid(), 9)", ": ends its process (SIGKILL)"),
        ("import os\nos.closerange(0, 99)", ": ends its process ("),
        ("import os, time\nos.closerange(0, 99)\ntime.sleep(60)", ": ends its process ("),
        ("import signal\nsignal.pause()", ": did not finish in 1 s"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", ": did not finish in 1 s"),
        ("A = 'x' * (20 << 20)", ": its values are larger than 16 MiB"),
        (
            "import os\nfor fd in range(3, 9):\n  try: os.write(fd, b'[' * 99999)\n  except: pass",
            ": killed or stopped the loader process, or overwrote its answer",
        ),
    ],
)
def test_a_loader_outlives_its_files(
    write_tenant: WriteTenant, data_dir: Path, text: str, reason: str
) -> None:
    """A tenant file that kills, blocks or floods the loader is rejected; other files still load."""
    timeout_s = 1.0 if "did not finish" in reason else DEADLINE_S
    with Loader(timeout_s=DEADLINE_S, data_dir=data_dir) as loader:
        reasons = _reasons(loader, write_tenant("acme", text), timeout_s)
        values = loader.load(write_tenant("globex", GOOD)).values

    assert [True] == [one.startswith(reason) for one in reasons]
    assert {"BLUEPRINTS": ["landing"]} == values


def test_a_stopped_loader_is_replaced(
    write_tenant: WriteTenant, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant file that stops the loader with SIGSTOP delays other files only briefly."""
    stop = write_tenant("acme", "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\n")
    good = write_tenant("globex", GOOD)
    with Loader(timeout_s=DEADLINE_S, data_dir=data_dir) as loader:
        loader.load(good)

        with monkeypatch.context() as patch:
            patch.setattr(tenantry.tenants.loader, "ANSWER_GRACE_S", 0.2)
            reasons = _reasons(loader, stop, timeout_s=0.5)

        assert [True] == ["stopped the loader process" in one for one in reasons]
        assert {"BLUEPRINTS": ["landing"]} == loader.load(good).values


def test_what_a_file_changes_ends_with_it(loader: Loader, write_tenant: WriteTenant) -> None:
    """A tenant file cannot change the current folder, environment or umask for the next file."""
    asks = "import os\nA = [os.getcwd(), os.environ.get('LEFT'), os.umask(0o22)]\nos.umask(A[2])\n"
    before = loader.load(write_tenant("globex", asks)).values
    changes = "import os\nos.chdir('/')\nos.environ['LEFT'] = '1'\nos.umask(0o123)\n"
    loader_reasons = _reasons(loader, write_tenant("acme", changes))

    after = loader.load(write_tenant("globex", asks)).values

    assert (3, before) == (len(loader_reasons), after)


@pytest.mark.parametrize(
    "module", ["sqlalchemy", "flask", "multiprocessing", "asyncio", "logging.config"]
)
def test_an_ordinary_import_is_not_a_side_effect(
    loader: Loader, write_tenant: WriteTenant, module: str
) -> None:
    """Side effects of a library that a tenant file imports are allowed."""
    assert [] == _reasons(loader, write_tenant("acme", f"import {module}\n"))


def test_every_reason_is_reported_at_once(loader: Loader, write_tenant: WriteTenant) -> None:
    """The loader reports all unsupported values and side effects of a tenant file together."""
    text = (
        "import os\nclass A: pass\nB = {1: [A()]}\nC = 1\nos.environ['LEFT'] = '1'\nos.umask(0)\n"
    )

    reasons = _reasons(loader, write_tenant("acme", text))

    assert [
        ": 'A': found type",
        ": 'B': found tenant.acme.A",
        ": changes os.environ['LEFT'] in its process",
        ": changes the umask in its process",
    ] == [reason.partition(";")[0] for reason in reasons]


def test_valid_values_come_back_beside_invalid_ones(
    loader: Loader, write_tenant: WriteTenant
) -> None:
    """An unsupported value in a tenant file does not hide the valid values."""
    text = "import os\nURL_PREFIX = '/else'\nHOOK = print\nos.umask(0)\n"

    loaded = loader.load(write_tenant("acme", text))

    assert ({"URL_PREFIX": "/else"}, ["HOOK", None]) == (
        loaded.values,
        [problem.key for problem in loaded.problems],
    )


def test_secrets_are_returned_separately(
    loader: Loader, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader returns the values of `secret()` separately, so that the host can redact them."""
    monkeypatch.setenv("ACME_KEY", "hunter2-hunter2")
    text = "from tenantry import secret\nA = [secret('ACME_KEY')]\nB = 'x' + secret('ACME_KEY')\n"

    loaded = loader.load(write_tenant("acme", text))

    assert (("hunter2-hunter2",), False) == (loaded.secrets, "hunter2" in repr(loaded))


@pytest.mark.parametrize(
    ("code", "text"), [(3, "exit code 3"), (0, "exit code 0"), (-9, "SIGKILL"), (-40, "signal 40")]
)
def test_an_exit_is_described_as_operators_know_it(code: int, text: str) -> None:
    """The error about a tenant file that ends its process names the signal or the exit code."""
    assert text == describe_exit(code)


@pytest.mark.parametrize(
    "text",
    [
        "int(KEY + 'x')",
        "raise SystemExit(KEY)",
        "assert not KEY, 'the key is ' + KEY",
        "KEY = (",
    ],
)
def test_a_message_contains_no_secret(
    loader: Loader, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """An error in a tenant file is reported without values of `secret()`."""
    monkeypatch.setenv("ACME_KEY", "hunter2-hunter2")
    path = write_tenant("acme", f"from tenantry import secret\nKEY = secret('ACME_KEY')\n{text}\n")

    reasons = _reasons(loader, path)

    assert [(":3: ", False)] == [(reason[:4], "hunter2" in reason) for reason in reasons]


@pytest.mark.parametrize(
    "text",
    [
        "raise ValueError('a\\n' * 5000)",
        "raise type('A\\nB', (Exception,), {})()",
        "raise SystemExit('a\\x1b[31m\\nb')",
        "A = type('A\\nB', (), {})()",
        "class Mute(Exception):\n  def __str__(self): raise SystemExit\nraise Mute",
    ],
)
def test_a_message_is_one_line(loader: Loader, write_tenant: WriteTenant, text: str) -> None:
    """An error in a tenant file is reported on one line, whatever the exception contains."""
    reasons = _reasons(loader, write_tenant("acme", text))

    assert [(True, True)] == [(one.isprintable(), len(one) < 1200) for one in reasons]


def test_a_large_file_is_not_read_whole(loader: Loader, write_tenant: WriteTenant) -> None:
    """A tenant file of 1 TiB is rejected as quickly as one of 2 MiB."""
    path = write_tenant("acme", GOOD)
    os.truncate(path, 1 << 40)

    assert [
        ": is larger than 1 MiB (1,099,511,627,776 bytes); keep only settings in it."
    ] == _reasons(loader, path)


def test_a_file_of_one_mebibyte_is_read(loader: Loader, write_tenant: WriteTenant) -> None:
    """A tenant file of exactly 1 MiB is accepted."""
    path = write_tenant("acme", GOOD + "#" * ((1 << 20) - len(GOOD)))

    assert ["BLUEPRINTS"] == list(loader.load(path).values)


def test_a_link_inside_the_folder_is_followed(loader: Loader, write_tenant: WriteTenant) -> None:
    """A symbolic link inside the tenants folder is followed, but not a link to the outside."""
    path = write_tenant("acme")
    (path.parent / "v2").mkdir()
    path.rename(path.parent / "v2/acme.py")
    path.symlink_to("v2/acme.py")

    assert [] == _reasons(loader, path)


def test_a_world_writable_folder_is_rejected(loader: Loader, write_tenant: WriteTenant) -> None:
    """A world-writable tenants folder is rejected, because any user could add a tenant."""
    path = write_tenant("acme")
    path.parent.chmod(0o777)

    reasons = _reasons(loader, path)

    assert [f": every user can write to its folder; run: chmod o-w {path.parent}"] == reasons


def test_a_link_into_a_world_writable_folder_is_rejected(
    loader: Loader, write_tenant: WriteTenant
) -> None:
    """A link is rejected if every user can replace its target."""
    path = write_tenant("acme")
    folder = path.parent / "v2"
    folder.mkdir()
    folder.chmod(0o777)
    path.rename(folder / "acme.py")
    path.symlink_to("v2/acme.py")

    assert [f": every user can write to its folder; run: chmod o-w {folder}"] == _reasons(
        loader, path
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_rejected(loader: Loader, write_tenant: WriteTenant) -> None:
    """The error for an unreadable tenant file gives the reason."""
    path = write_tenant("acme")
    path.chmod(0)

    assert [": cannot be read: Permission denied; fix or remove it."] == _reasons(loader, path)


def test_a_closed_loader_can_be_used_again(write_tenant: WriteTenant, data_dir: Path) -> None:
    """A closed loader of tenant files can be used again."""
    path = write_tenant("acme", "import os\nPARENT = os.getppid()\n")
    loader = Loader(data_dir=data_dir)
    first = loader.load(path).values["PARENT"]
    loader.close()
    loader.close()

    second = loader.load(path).values["PARENT"]

    loader.close()
    assert first != second
    assert [False, False] == [Path(f"/proc/{pid}").exists() for pid in (first, second)]


def test_a_file_can_import_what_the_host_can(
    loader: Loader, write_tenant: WriteTenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant file can import the same modules as the host."""
    (tmp_path / "shared_names.py").write_text("LIST = ['landing']\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write_tenant("acme", "from shared_names import LIST as BLUEPRINTS\n")

    assert {"BLUEPRINTS": ["landing"]} == loader.load(path).values
    assert "shared_names" not in sys.modules


def test_a_path_is_shown_as_an_operator_would_type_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path below the current folder is shown as relative, with unprintable bytes escaped."""
    monkeypatch.chdir(tmp_path)
    shown = {
        "tenants/acme.py": "tenants/acme.py",
        "/elsewhere/acme.py": "/elsewhere/acme.py",
        "é.py": "é.py",
        "a\nb.py": "a\\nb.py",
        "\udcff.py": "\\udcff.py",
        "\x1b[31m.py": "\\x1b[31m.py",
    }

    assert shown == {name: display_path(tmp_path / name) for name in shown}
