"""The source code of private modules, found, read and compiled once for each file.

Code objects are immutable, so all tenants share them. Therefore, a private module needs memory only
for the objects that the module's code creates.
"""

import ast
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

from tenantry.private_code.search import find_module, folders_of
from tenantry.private_code.snapshot import read_code

_MARK = b"__shared__"


class Sources:
    """The compiled files of one process, and its shared modules.

    Thread-safe. `close` unloads the shared modules.

    Each file is read once. A changed file takes effect only with a new `Sources` object, so that
    old and new code never mix.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects `_files`
        self._files: dict[str, tuple[CodeType, bool]] = {}
        # Entries are only added, by the name of the module and the folders.
        self._found: dict[tuple[str, ...], ModuleSpec] = {}
        self._folders: dict[tuple[str, str], list[str]] = {}
        self.shared: dict[str, ModuleType] = {}
        """The modules that all tenants share, by the path of their file."""
        self.on_close: list[Callable[[], object]] = []
        """The functions that `close` calls."""

    def close(self) -> None:
        """Remove the shared modules. Idempotent."""
        self.shared.clear()
        while self.on_close:
            self.on_close.pop()()

    def find(self, plain: str, folders: Sequence[str]) -> ModuleSpec | None:
        """Return the spec of a module in folders, which all tenants share."""
        key = (plain.rpartition(".")[2], *folders)
        found = self._found.get(key) or find_module(plain, folders)
        if found is not None:
            self._found[key] = found
        return found

    def folders_of(self, package: str, app_dir: str | None) -> list[str]:
        """Return the folders of a package of the process, which all tenants share."""
        key = (package, app_dir or "")
        found = self._folders.get(key) or folders_of(package, app_dir)
        if found:
            self._folders[key] = found
        return found

    def code(self, path: str) -> CodeType:
        """Return the code of a Python file.

        Raises:
            OSError: the file cannot be read.
            SyntaxError: the file is not valid Python.
        """
        return self._file(path)[0]

    def is_shared(self, path: str) -> bool:
        """Whether a Python file begins with `__shared__ = True`, after its docstring.

        Raises:
            OSError: the file cannot be read.
            SyntaxError: the file is not valid Python.
        """
        return self._file(path)[1]

    def _file(self, path: str) -> tuple[CodeType, bool]:
        found = self._files.get(path)
        if found is None:
            compiled = _compile(path)
            with self._lock:
                found = self._files.setdefault(path, compiled)
        return found


def _compile(path: str) -> tuple[CodeType, bool]:
    data = read_code(path)
    code: CodeType = compile(data, path, "exec", dont_inherit=True)
    return code, _MARK in data and _begins_with_mark(data)


def _begins_with_mark(data: bytes) -> bool:
    for statement in ast.parse(data).body:
        match statement:
            case ast.Expr(value=ast.Constant(value=str())) | ast.ImportFrom(module="__future__"):
                continue
            case ast.Assign(targets=[ast.Name(id="__shared__")], value=ast.Constant(value=True)):
                return True
        return False
    return False
