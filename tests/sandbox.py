"""Runs a program under the restrictions of `config/tenantry.service`, without systemd.

    python tests/sandbox.py UNIT PROGRAM [ARGUMENT]...

The unit determines the system calls, the address families and the capabilities. The file system is
not restricted, because restricting it requires a mount namespace, which a container may not create.
"""

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from ctypes import byref, c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path

_PR_CAPBSET_DROP = 24
_ALLOW, _EPERM = 0x7FFF0000, 0x00050000 | 1  # values of SCMP_ACT_ALLOW and SCMP_ACT_ERRNO(EPERM)
_EQUAL = 4  # the value of SCMP_CMP_EQ in libseccomp


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp` of libseccomp."""

    _fields_ = (("arg", c_uint32), ("op", c_int), ("value", c_uint64), ("mask", c_uint64))


def read_unit(unit: Path) -> dict[str, list[str]]:
    """Return the words of each directive in the section `Service`. Repeated lines are joined."""
    lines: dict[str, list[str]] = {}
    for line in unit.read_text().partition("[Service]")[2].splitlines():
        key, is_directive, value = line.partition("=")
        if is_directive and not line.startswith("#"):
            lines.setdefault(key, []).append(value)
    return {key: " ; ".join(values).split() for key, values in lines.items()}


def allowed_calls(words: Iterable[str]) -> set[str]:
    """Return the names of the system calls that the lines of `SystemCallFilter=` allow.

    A line that begins with `~` removes calls; any other line adds calls.
    """
    groups = _groups()
    allowed: set[str] = set()
    is_removing = False
    for word in words:
        if word == ";":
            is_removing = False
            continue
        is_removing = is_removing or word.startswith("~")
        named = _expand(word.removeprefix("~"), groups)
        allowed = allowed - named if is_removing else allowed | named
    return allowed


def _groups() -> dict[str, list[str]]:
    """Return systemd's groups of system calls."""
    text = subprocess.run(
        ["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout
    groups: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("#"):  # the remaining lines list calls without a group
            break
        if line.startswith("@"):
            members = groups.setdefault(line.strip(), [])
        elif line.strip() and not line.strip().startswith("#"):
            members.append(line.strip())
    return groups


def _expand(word: str, groups: dict[str, list[str]]) -> set[str]:
    if not word.startswith("@"):
        return {word}
    return set[str]().union(*(_expand(member, groups) for member in groups[word]))


def _restrict(calls: set[str], families: Iterable[str]) -> None:
    """Restrict this process and its children to the given system calls and address families."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = c_void_p
    context = c_void_p(library.seccomp_init(c_uint32(_EPERM)))
    for name in sorted(calls - {"socket"}):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # the call exists on this machine
            _check(library.seccomp_rule_add_array(context, c_uint32(_ALLOW), number, 0, None))
    number = library.seccomp_syscall_resolve_name(b"socket")
    for family in families:
        only = _Comparison(0, _EQUAL, getattr(socket, family), 0)
        _check(library.seccomp_rule_add_array(context, c_uint32(_ALLOW), number, 1, byref(only)))
    _check(library.seccomp_load(context))


def _check(result: int) -> None:
    if result:
        raise OSError(-result, os.strerror(-result))


def _drop_capabilities() -> None:
    """Remove all capabilities from the program that this process executes, even for root."""
    library = ctypes.CDLL(None)
    number = 0
    while library.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1


def main() -> None:
    """Execute the program."""
    unit, *command = sys.argv[1:]
    service = read_unit(Path(unit))
    calls = allowed_calls(service["SystemCallFilter"])
    _drop_capabilities()
    _restrict(calls, service["RestrictAddressFamilies"])
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
