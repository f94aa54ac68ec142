"""Creates tenants that hang, crash or compute, for live tests and benchmarks."""

from pathlib import Path

ENDPOINT = """\
import ctypes, os, re, signal, time
from flask import Blueprint

hanging_bp = Blueprint("hanging", __name__)


@hanging_bp.route("/")
def index():
    return str(os.getpid())


@hanging_bp.route("/regex")
def hold():
    re.match("(a+)+$", "a" * 40 + "b")  # days, with the interpreter lock held
    return ""


@hanging_bp.route("/exit")
def leave():
    os._exit(3)


@hanging_bp.route("/kill")
def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@hanging_bp.route("/crash")
def crash():
    ctypes.string_at(0)


@hanging_bp.route("/sleep/<float:seconds>")
def sleep(seconds):
    time.sleep(seconds)
    return ""


@hanging_bp.route("/stream/<float:seconds>")
def stream(seconds):
    def parts():
        yield "x"
        time.sleep(seconds)

    return parts()


@hanging_bp.route("/compute/<float:seconds>")
def compute(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return ""
"""


def make_hanging_site(folder: Path, **keys: dict[str, object]) -> Path:
    """Create the endpoint, and one tenant per keyword argument. Return the tenants folder."""
    package = folder / "stuck/hanging"
    package.mkdir(parents=True)
    for init in (folder / "stuck/__init__.py", package / "__init__.py"):
        init.write_text("")
    (package / "blueprint.py").write_text(ENDPOINT)
    tenants = folder / "tenants"
    tenants.mkdir(exist_ok=True)
    for name, given in keys.items():
        values = {"SECRET_KEY": name + "-" * 32, "BLUEPRINTS": ["stuck.hanging"]} | given
        text = "".join(f"{key} = {value!r}\n" for key, value in values.items())
        (tenants / f"{name}.py").write_text(text)
    return tenants
