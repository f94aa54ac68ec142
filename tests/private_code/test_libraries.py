"""Libraries that look up modules, names and files find those of the tenant's own modules."""

import inspect
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.test import Client

from tenantry.app.factory import close_app, create_app

BLUEPRINT = """
from flask import Blueprint, jsonify, render_template
from . import probe

shop_bp = Blueprint("shop", __name__, template_folder="templates")

@shop_bp.get("/")
def show():
    return jsonify(probe.probe())

@shop_bp.get("/page")
def page():
    return render_template("page.html")

@shop_bp.get("/file")
def file():
    with shop_bp.open_resource("list.txt") as opened:
        return opened.read()
"""

Answer = Callable[..., object]


@pytest.fixture(name="answer")
def _answer(tmp_path: Path) -> Iterator[Answer]:
    """Return a function that writes the module `probe`, and calls its `probe` in two tenants."""
    apps: list[Flask] = []

    def answer(probe: str, **modules: str) -> object:
        write_shop(tmp_path, probe=probe, **modules)
        apps.extend(build(tmp_path, name) for name in ("acme", "globex"))
        answers = [Client(app).get("/").get_json() for app in apps]
        return answers[0] if answers[0] == answers[1] else answers

    yield answer
    for app in apps:
        close_app(app)


def write_shop(folder: Path, **modules: str) -> None:
    """Write the endpoint `shop` with modules, a file and a template."""
    files = {f"{name.replace('__', '/')}.py": text for name, text in modules.items()}
    files |= {"list.txt": "list", "templates/page.html": "page", "blueprint.py": BLUEPRINT}
    for name, text in ({"__init__.py": ""} | files).items():
        path = folder / "project/shop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def build(folder: Path, tenant: str) -> Flask:
    """Build the app of a tenant."""
    config = {
        "APP_NAME": tenant,
        "SECRET_KEY": tenant * 16,
        "BLUEPRINTS": ["shop"],
        "APP_DIR": str(folder / "project"),
    }
    return create_app(config, data_dir=folder / "instance")


POSTPONED = """
from __future__ import annotations
import dataclasses, typing

@dataclasses.dataclass
class Row:
    size: typing.ClassVar[int] = 7
    seed: dataclasses.InitVar[int] = 1
    parent: Row | None = None

def probe():
    names = [one.name for one in dataclasses.fields(Row)]
    return [names, typing.get_type_hints(Row)["parent"] == Row | None]
"""

MAPPED = """
from __future__ import annotations
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

class Base(DeclarativeBase):
    pass

class Parent(Base):
    __tablename__ = "parents"
    id: Mapped[int] = mapped_column(primary_key=True)
    children: Mapped[list[Child]] = relationship("Child", back_populates="parent")

class Child(Base):
    __tablename__ = "children"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parents.id"))
    parent: Mapped[Parent] = relationship("probe.Parent", back_populates="children")

def probe():
    return [Parent(children=[Child()]).children[0].parent.__class__ is Parent]
"""

CASES: dict[str, tuple[str, object]] = {
    "pickle": (
        (
            "import enum, pickle\n"
            "class Item: pass\n"
            "class Color(enum.Enum): RED = 1\n"
            "def twice(x): return pickle.loads(pickle.dumps(x))\n"
            "def probe():\n"
            "    is_same = type(twice(Item())) is Item\n"
            "    return [is_same, twice(Color.RED) is Color.RED, twice(probe) is probe]\n"
        ),
        [True, True, True],
    ),
    "postponed annotations": (POSTPONED, [["parent"], True]),
    "SQLAlchemy": (MAPPED, [True]),
    "importlib.resources": (
        (
            "import importlib.resources as r\n"
            "def probe(): return [r.files(__package__).joinpath('list.txt').read_text(),"
            " r.files('shop').joinpath('list.txt').read_text()]\n"
        ),
        ["list", "list"],
    ),
    "pkgutil.get_data": (
        (
            "import pkgutil\n"
            "def probe(): return [pkgutil.get_data(__package__, 'list.txt').decode(),"
            " pkgutil.get_data('shop', 'list.txt').decode()]\n"
        ),
        ["list", "list"],
    ),
    "inspect": (
        (
            "import inspect, sys\n"
            "def probe():\n"
            "    is_found = inspect.getmodule(probe) is sys.modules[__name__]\n"
            "    return [inspect.getsource(probe)[:11], is_found]\n"
        ),
        ["def probe()", True],
    ),
    "names": (
        (
            "import logging\n"
            "def probe():\n"
            "    is_logger = logging.getLogger(__name__).name == __name__\n"
            "    names = [__name__.partition('@')[0], __name__.partition('.')[2]]\n"
            "    return [*names, __package__ == __spec__.parent, is_logger]\n"
        ),
        ["shop", "probe", True, True],
    ),
    "unittest.mock": (
        (
            "from unittest import mock\n"
            "VALUE = 'real'\n"
            "def probe():\n"
            "    with mock.patch('shop.probe.VALUE', 'mock'):\n"
            "        return [VALUE]\n"
        ),
        ["mock"],
    ),
    "multiprocessing": (
        (
            "import multiprocessing\n"
            "class Item: pass\n"
            "def work(item, queue): queue.put([type(item) is Item, __name__.partition('.')[2]])\n"
            "def probe():\n"
            "    context = multiprocessing.get_context('fork')\n"
            "    queue = context.Queue()\n"
            "    process = context.Process(target=work, args=(Item(), queue))\n"
            "    process.start()\n"
            "    found = queue.get(timeout=30)\n"
            "    process.join()\n"
            "    queue.close()\n"
            "    queue.join_thread()\n"
            "    return found\n"
        ),
        [True, "probe"],
    ),
    "functools": (
        (
            "import functools\n"
            "@functools.singledispatch\n"
            "def kind(x): return 'other'\n"
            "@kind.register\n"
            "def _(x: int): return 'int'\n"
            "def probe(): return [kind(1), kind('')]\n"
        ),
        ["int", "other"],
    ),
}


@pytest.mark.parametrize(("probe", "expected"), CASES.values(), ids=CASES)
def test_a_library_finds_the_tenants_own_module(
    answer: Answer, probe: str, expected: object
) -> None:
    """In each tenant, the library has the result that it has in a single application."""
    assert expected == answer(probe)


VALUE = "VALUE = 7\n"
IMPORTS: dict[str, tuple[str, dict[str, str]]] = {
    "circular": (
        "from . import one\ndef probe(): return one.value()",
        {
            "one": "from . import two\ndef value(): return two.VALUE",
            "two": f"from . import one\n{VALUE}",
        },
    ),
    "circular by plain name": (
        "import shop.one\ndef probe(): return shop.one.value()",
        {
            "one": "import shop.two as two\ndef value(): return two.VALUE",
            "two": f"import shop.one\n{VALUE}",
        },
    ),
    "as": (
        "import shop.parts.one as one\ndef probe(): return one.VALUE",
        {"parts__one": VALUE},
    ),
    "namespace": (
        "from .parts.inner import one\ndef probe(): return one.VALUE",
        {"parts__inner__one": "from ...two import VALUE", "two": VALUE},
    ),
    "star": ("from .one import *\ndef probe(): return VALUE", {"one": VALUE}),
    "in a thread": (
        """
from threading import Thread

def probe():
    found = []
    def work():
        from .one import VALUE
        import shop.one
        found.append(VALUE if shop.one.VALUE == VALUE else None)
    thread = Thread(target=work)
    thread.start()
    thread.join()
    return found[0]
""",
        {"one": VALUE},
    ),
    "a module that replaces itself": (
        "from . import one\ndef probe(): return one.VALUE",
        {"one": "import sys\nclass Lazy:\n    VALUE = 7\nsys.modules[__name__] = Lazy()"},
    ),
    "module attributes": (
        "from . import one\ndef probe(): return one.VALUE",
        {"one": "def __getattr__(name):\n    return {'VALUE': 7}[name]"},
    ),
    "optional": (
        "try: from .missing import VALUE\nexcept ImportError: VALUE = 7\ndef probe(): return VALUE",
        {},
    ),
}


@pytest.mark.parametrize(("probe", "modules"), IMPORTS.values(), ids=IMPORTS)
def test_every_form_of_import_works(answer: Answer, probe: str, modules: dict[str, str]) -> None:
    """Imports between a tenant's modules work as in a single application."""
    assert 7 == answer(probe, **modules)


def test_files_beside_the_code_are_found(tmp_path: Path) -> None:
    """A blueprint finds its templates and its `open_resource` files."""
    write_shop(tmp_path, probe="def probe(): return 1")
    app = build(tmp_path, "acme")
    client = Client(app)

    answers = [client.get(path).text for path in ("/page", "/file")]

    close_app(app)
    assert ["page", "list"] == answers


def test_a_debugger_stops_in_a_private_module(tmp_path: Path) -> None:
    """`breakpoint()` shows the tenant's own file and line."""
    write_shop(
        tmp_path, probe="import pdb\ndef probe(debugger):\n    debugger.set_trace()\n    return 1\n"
    )
    app = build(tmp_path, "acme")
    written = io.StringIO()
    pdb = pytest.importorskip("pdb")
    debugger = pdb.Pdb(stdin=io.StringIO("list\ncontinue\n"), stdout=written, nosigint=True)
    before = sys.gettrace()

    sys.modules["shop@acme.probe"].probe(debugger)

    sys.settrace(before)
    close_app(app)
    assert f"{tmp_path}/project/shop/probe.py(" in written.getvalue()  # the line depends on Python
    assert "debugger.set_trace()" in written.getvalue()


# -- other processes ------------------------------------------------------------------------------

OTHER = """
import json, pickle, sys
from pathlib import Path
sys.path[:] = {path!r}
from test_libraries import build
app = build(Path(sys.argv[1]), "acme")
item = pickle.loads(bytes.fromhex(sys.argv[2]))
print(json.dumps([type(item).__module__, item.x]))
"""


def test_a_pickle_is_read_in_another_process(tmp_path: Path) -> None:
    """A process that has built the tenant reads what another process has pickled."""
    write_shop(tmp_path, probe="class Item:\n    def __init__(self): self.x = 7\n")
    app = build(tmp_path, "acme")
    pickled = pickle.dumps(sys.modules["shop@acme.probe"].Item()).hex()
    close_app(app)
    code = OTHER.format(path=[*sys.path, str(Path(__file__).parent)])

    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), pickled], capture_output=True, check=False
    )

    assert ["shop@acme.probe", 7] == json.loads(run.stdout or "null"), run.stderr


MEASURED = """
import sys
sys.path[:] = {path!r}
from pathlib import Path
from werkzeug.test import Client
from test_libraries import build
Client(build(Path(sys.argv[1]), "acme")).get("/")
"""


def test_coverage_counts_the_lines_of_private_modules(tmp_path: Path) -> None:
    """`coverage run` reports the lines that ran in the original file."""
    write_shop(tmp_path, probe="def probe():\n    return 1\n\ndef unused():\n    return 2\n")
    script = tmp_path / "script.py"
    script.write_text(MEASURED.format(path=[*sys.path, str(Path(__file__).parent)]))
    environ = os.environ | {"COVERAGE_FILE": str(tmp_path / "data")}
    coverage = [sys.executable, "-m", "coverage"]
    project = str(tmp_path / "project")
    run = [*coverage, "run", f"--source={project}", str(script), str(tmp_path)]
    subprocess.run(run, env=environ, cwd=tmp_path, check=True, capture_output=True)

    report = subprocess.run(
        [*coverage, "json", "-q", "-o", "-"], env=environ, cwd=tmp_path, capture_output=True,
        check=True,
    )  # fmt: skip

    files = {Path(name).name: one for name, one in json.loads(report.stdout)["files"].items()}
    assert [5] == files["probe.py"]["missing_lines"]


def test_the_source_of_a_class_is_found(tmp_path: Path) -> None:
    """`inspect.getsource` finds a class by its module's name."""
    write_shop(tmp_path, probe="class Item:\n    x = 7\n")
    app = build(tmp_path, "acme")

    source = inspect.getsource(sys.modules["shop@acme.probe"].Item)

    close_app(app)
    assert "class Item:\n    x = 7\n" == source
