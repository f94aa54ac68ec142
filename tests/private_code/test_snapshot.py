"""A process with a code snapshot imports modules as they were when their folder was copied."""

import importlib
import inspect
import linecache
import os
import pkgutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tenantry.endpoints.app_loading import load_app
from tenantry.endpoints.app_reference import find_app, parse_app
from tenantry.endpoints.finding import find_endpoint
from tenantry.endpoints.loading import load_endpoint
from tenantry.errors import ApplicationError, EndpointError
from tenantry.migrations.revisions import read_branches
from tenantry.private_code import copying
from tenantry.private_code.copying import CodeCopyError
from tenantry.private_code.modules import PrivateModules
from tenantry.private_code.snapshot import CodeSnapshot, use_snapshot

OLD, NEW = "VALUE = 'old'\n", "VALUE = 'new'\n"

Load = Callable[[], PrivateModules]


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Path:
    """Return a folder with the package `shop`."""
    folder = tmp_path / "project"
    write(folder, "shop/__init__.py", "")
    write(folder, "shop/models.py", OLD)
    return folder


@pytest.fixture(name="snapshot")
def _snapshot(tmp_path: Path) -> Iterator[CodeSnapshot]:
    """Return the snapshot of this process, without any copy."""
    folder = tmp_path / "code"
    folder.mkdir()
    snapshot = CodeSnapshot(folder)
    use_snapshot(snapshot)
    yield snapshot
    use_snapshot(None)
    linecache.clearcache()


@pytest.fixture(name="load")
def _load(project: Path) -> Iterator[Load]:
    """Return a function that begins a build with the modules of the project."""
    builds: list[PrivateModules] = []

    def load() -> PrivateModules:
        builds.append(PrivateModules("acme", None, app_dir=str(project)))
        return builds[-1]

    yield load
    for modules in builds:
        modules.unload()


def write(folder: Path, name: str, text: str) -> None:
    """Write a file and its folders."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.usefixtures("snapshot")
def test_a_change_does_not_reach_later_imports(project: Path, load: Load) -> None:
    """A module that is imported for the first time after a change has its old code."""
    load().load("shop")
    write(project, "shop/models.py", NEW)

    models = load().load("shop.models")

    assert ("old", str(project / "shop/models.py")) == (models.VALUE, models.__file__)


@pytest.mark.usefixtures("snapshot")
def test_deleted_code_is_still_found(project: Path, load: Load) -> None:
    """Deleted modules and packages can be imported until the restart."""
    load().load("shop")
    (project / "shop").rename(project / "store")

    assert "old" == load().load("shop.models").VALUE


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize("name", ["shop.late", "prices"])
def test_a_new_module_is_not_found(project: Path, load: Load, name: str) -> None:
    """The error says that a restart makes the new module known."""
    load().load("shop")
    write(project, f"{name.replace('.', '/')}.py", NEW)

    with pytest.raises(ModuleNotFoundError, match=rf"'{name}'; .* run: tenantry restart"):
        load()._load(name)


@pytest.mark.usefixtures("snapshot")
def test_a_new_endpoint_needs_a_restart(project: Path, load: Load) -> None:
    """The error for an endpoint that the snapshot lacks says so."""
    load().load("shop")
    write(project, "offers/blueprint.py", "")

    with pytest.raises(EndpointError, match=r"'offers' is newer than .* run: tenantry restart"):
        find_endpoint("offers", str(project))


@pytest.mark.usefixtures("snapshot")
def test_a_new_application_needs_a_restart(project: Path, load: Load) -> None:
    """The error for an application that the snapshot lacks says so."""
    load().load("shop")
    write(project, "offers.py", "")

    with pytest.raises(ApplicationError, match=r"'offers:app' is newer .* run: tenantry restart"):
        find_app(parse_app("offers:app"), str(project))


@pytest.mark.usefixtures("snapshot")
def test_a_broken_application_needs_a_restart(project: Path, load: Load) -> None:
    """The error of a broken application says that the fixed code takes effect with a restart."""
    write(project, "offers.py", "1 / 0\n")

    with pytest.raises(ApplicationError, match=r"; fix it, then run: tenantry restart\.$"):
        load_app(parse_app("offers:app"), load(), {})


def test_a_process_without_a_snapshot_reads_the_disk(project: Path, load: Load) -> None:
    """A command imports the newest code, and later imports of another build, too."""
    load().load("shop.models")
    write(project, "shop/models.py", NEW)

    assert "new" == load().load("shop.models").VALUE


def test_processes_with_the_same_snapshot_have_the_same_code(
    project: Path, load: Load, snapshot: CodeSnapshot
) -> None:
    """A process that starts after a change uses the copy that another process has made."""
    load().load("shop")
    write(project, "shop/models.py", NEW)
    write(project, "shop/late.py", NEW)
    use_snapshot(CodeSnapshot(snapshot.folder))

    assert "old" == load().load("shop.models").VALUE
    with pytest.raises(ModuleNotFoundError):
        load().load("shop.late")


def test_a_process_finds_code_that_is_gone(
    project: Path, load: Load, snapshot: CodeSnapshot
) -> None:
    """A process that starts while a deployment replaces the folder uses the copy."""
    load().load("shop")
    project.rename(project.with_name("away"))
    use_snapshot(CodeSnapshot(snapshot.folder))

    assert "old" == load().load("shop.models").VALUE


@pytest.mark.usefixtures("snapshot")
def test_data_files_are_read_when_used(project: Path, load: Load) -> None:
    """`pkgutil.get_data` and `importlib.resources` read the file as it is now."""
    write(project, "shop/list.txt", "old")
    modules = load()
    with modules.building():
        shop = modules.load("shop")
        write(project, "shop/list.txt", "new")

        read = importlib.resources.files(shop.__name__).joinpath("list.txt").read_text()

        assert ("new", b"new") == (read, pkgutil.get_data(shop.__name__, "list.txt"))


@pytest.mark.usefixtures("snapshot")
def test_a_traceback_shows_the_code_that_ran(project: Path, load: Load) -> None:
    """Tracebacks, debuggers and `inspect` show the lines of the copy, not those of the file."""
    write(project, "shop/models.py", "def fail():\n    raise ValueError('old')  # old\n")
    fail = load().load("shop.models").fail
    write(project, "shop/models.py", "# new\n# new\n# new\n")

    with pytest.raises(ValueError, match="old") as raised:
        fail()

    lines = "".join(traceback.format_exception(raised.value))
    assert f'{project}/shop/models.py", line 2, in fail' in lines
    assert "raise ValueError('old')  # old" in lines
    assert inspect.getsource(fail).startswith("def fail():")


@pytest.mark.usefixtures("snapshot")
def test_the_modules_of_a_package_are_those_of_the_copy(project: Path, load: Load) -> None:
    """Code that imports every module of a package finds no module that it cannot import."""
    shop = load().load("shop")
    write(project, "shop/late.py", NEW)
    (project / "shop/models.py").unlink()

    assert ["models"] == [one.name for one in pkgutil.iter_modules(shop.__path__)]


@pytest.mark.usefixtures("snapshot")
def test_a_namespace_package_keeps_its_folder(project: Path, load: Load) -> None:
    """`__path__` is the original folder, in which the app has its templates."""
    write(project, "parts/one.py", OLD)

    parts = load().load("parts")

    assert [str(project / "parts")] == list(parts.__path__)


def test_a_folder_is_copied_only_if_it_has_a_wanted_module(
    project: Path, load: Load, snapshot: CodeSnapshot
) -> None:
    """A lookup of a library does not copy the folder in which the host happens to start."""
    load().is_private("json")

    assert [] == list(snapshot.folder.iterdir())
    assert load().is_private("shop")
    assert 1 == len(list(snapshot.folder.iterdir())), project


@pytest.mark.usefixtures("snapshot")
def test_a_broken_endpoint_needs_a_restart_after_the_fix(project: Path, load: Load) -> None:
    """The error does not let an operator wait for a fix to take effect."""
    write(project, "shop/blueprint.py", "1 / 0\n")

    with pytest.raises(EndpointError, match=r"fix the endpoint, then run: tenantry restart\."):
        load_endpoint("shop", load())


@pytest.mark.usefixtures("snapshot")
def test_revisions_are_those_of_the_copy(project: Path) -> None:
    """A migration that is added later does not concern the code that serves."""
    write(project, "shop/blueprint.py", "")
    write(project, "shop/migrations/1.py", "revision = 'shop_1'\ndown_revision = None\n")
    find_endpoint("shop", str(project))
    write(project, "shop/migrations/2.py", "revision = 'shop_2'\ndown_revision = 'shop_1'\n")

    (branch,) = read_branches(["shop"], str(project))

    assert {"shop_1"} == branch.heads


@pytest.mark.usefixtures("snapshot")
def test_code_in_a_virtual_environment_has_a_copy_of_its_own(
    project: Path, snapshot: CodeSnapshot
) -> None:
    """An endpoint that is installed in a project's virtual environment is found."""
    snapshot.copy_of(str(project))
    installed = project / ".venv/lib/python3.11/site-packages/offers"
    write(installed, "blueprint.py", OLD)

    copy = Path(snapshot.copy_of(str(installed)))
    write(installed, "blueprint.py", NEW)

    assert OLD == (copy / "blueprint.py").read_text()


# -- what is copied -----------------------------------------------------------------------------


def test_only_code_is_copied(project: Path, tmp_path: Path, snapshot: CodeSnapshot) -> None:
    """Data, hidden folders, libraries and the host's own folders are left out."""
    for name in (".git/a.py", ".venv/lib/python3.11/a.py", "node_modules/a.py", "instance/a.py"):
        write(project, name, "")
    for name in ("shop/logo.png", "shop/__pycache__/a.py", "shop/migrations/seed.csv"):
        write(project, name, "")
    os.mkfifo(project / "fifo.py")
    snapshot = CodeSnapshot(snapshot.folder, [str(project / "instance")])

    copy = Path(snapshot.copy_of(str(project)))

    files = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    expected = {"shop/__init__.py", "shop/models.py", "shop/migrations/seed.csv", ".folder"}
    assert expected == files, tmp_path


def test_links_are_followed_once(project: Path, snapshot: CodeSnapshot, tmp_path: Path) -> None:
    """A linked package is copied, and a link to a parent folder does not repeat forever."""
    write(tmp_path, "elsewhere/a.py", OLD)
    (project / "linked").symlink_to(tmp_path / "elsewhere")
    (project / "shop/again").symlink_to(project)
    (project / "broken.py").symlink_to("missing")

    copy = Path(snapshot.copy_of(str(project)))

    assert OLD == (copy / "linked/a.py").read_text()
    assert {"linked", "shop", ".folder"} == {path.name for path in copy.iterdir()}


def test_a_folder_with_too_many_files_is_an_error(
    project: Path, snapshot: CodeSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the folder and the key to set."""
    monkeypatch.setattr(copying, "MAX_FILES", 1)

    with pytest.raises(CodeCopyError, match=r"project holds more than 1 Python files; set APP_DIR"):
        snapshot.copy_of(str(project))
    with pytest.raises(EndpointError, match=r"endpoint 'shop': .* set APP_DIR"):
        find_endpoint("shop", str(project))
    with pytest.raises(ApplicationError, match=r"^application 'shop:app': .* set APP_DIR"):
        find_app(parse_app("shop:app"), str(project))


def test_a_change_during_the_copy_is_copied(
    project: Path, snapshot: CodeSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a deployment is not copied if the deployment ends during the copy."""
    copyfile = copying.shutil.copyfile

    def copy_and_deploy(source: str, target: Path) -> None:
        monkeypatch.setattr(copying.shutil, "copyfile", copyfile)
        copyfile(source, target)
        write(project, "shop/models.py", NEW)
        write(project, "shop/late.py", NEW)

    monkeypatch.setattr(copying.shutil, "copyfile", copy_and_deploy)

    copy = Path(snapshot.copy_of(str(project)))

    assert [NEW, NEW] == [(copy / f"shop/{name}.py").read_text() for name in ("models", "late")]


def test_a_copy_that_fails_is_an_error(project: Path, snapshot: CodeSnapshot) -> None:
    """The error names both folders and the reason, and leaves nothing behind."""
    snapshot.folder.rmdir()

    with pytest.raises(CodeCopyError, match=r"cannot copy the Python files of .*: No such file"):
        snapshot.copy_of(str(project))
    snapshot.folder.mkdir()
