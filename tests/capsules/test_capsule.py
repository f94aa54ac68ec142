"""The content of a backup file has a fixed order and limited sizes."""

import uuid
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from capsule_files import Members, archive, headers, quiet, sealed
from tenantry.capsules import Capsule, read_capsule
from tenantry.capsules.archive import CapsuleError
from tenantry.capsules.capsule import HEADER_LIMIT_BYTES, ROW_CHUNK_BYTES, read_rows
from tenantry.capsules.configuration import render_tenant_file
from tenantry.capsules.json_values import STRUCTURE_LIMIT_BYTES, dump_value, load_value
from tenantry.capsules.tenant_folder import checked_path

TABLES = [{"name": name, "columns": ["id"]} for name in ("a", "b")]

Read = Callable[..., Capsule]


@pytest.fixture(name="read")
def _read(tmp_path: Path) -> Read:
    """Return a function that writes a backup file with the given members and reads it back."""

    def read(*members: tuple[str, bytes], first: Members | None = None) -> Capsule:
        path = tmp_path / "a.capsule"
        path.write_bytes(sealed(archive([*(headers() if first is None else first), *members])))
        return read_capsule(path, quiet)

    return read


def test_values_survive_json() -> None:
    """Values of rows and tenant files that are converted to JSON and back stay the same."""
    values = [
        None, True, 1 << 70, -(1 << 63), 0.1, 5e-324, float("inf"), float("nan"), "\ud800ä\0",
        b"\0\xff", Decimal("1.10"), Decimal("NaN"), date.min, date.max,
        datetime.fromisoformat("2026-01-02T03:04:05.000006+02:00"),
        timedelta(1, 2, 3), uuid.UUID(int=1),
        (1, [2, {3}]), {"a": 1, ("b",): None}, Path("x"),
    ]  # fmt: skip

    assert repr(values) == repr(load_value(dump_value(values).encode()))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", '{"a": 1}', '{"a": 1, "b": 2}', '{"uuid": 1}', "[" * 99999, '"ä"', "9" * 5000,
        '{"decimal": "x"}', '{"date": "2026-02-30"}', '{"timedelta": [1e99, 0, 0]}',
        '{"set": [[]]}', '{"dict": [[[], 1]]}', '{"bytes": "ä"}',
    ],
)  # fmt: skip
def test_other_json_is_rejected(text: str) -> None:
    """Decoding JSON from a backup file returns plain data or raises `ValueError`."""
    with pytest.raises(ValueError, match="not a value of a capsule"):
        load_value(text.encode())


def test_a_restored_tenant_file_has_the_same_values() -> None:
    """The text of a restored tenant file evaluates to the original values."""
    config = {
        "NUMBERS": (1, -0.5, float("inf"), Decimal("1.10"), True, None),
        "TEXTS": ["'\"\\\n\ud800ä", b"\0\xff", Path("x")],
        "TIMES": {
            "a": timedelta(1, 2, 3),
            (1,): {datetime.fromisoformat("2026-01-02T03:04+02:00")},
        },
    }
    values: dict[str, object] = {}

    exec(render_tenant_file("acme", config, expressions={}, secret_keys=[]), values)

    assert config == {key: values[key] for key in config}


@pytest.mark.parametrize("item", ["[]", '""', '"a\\"\\\\"'])
def test_many_small_values_are_rejected(item: str) -> None:
    """JSON that would take twenty times its size in memory is rejected before decoding."""
    count = STRUCTURE_LIMIT_BYTES + 2

    with pytest.raises(ValueError, match="more than 1 MiB outside of strings"):
        load_value(b"[" + b",".join([item.encode()] * count) + b"]")


def test_long_strings_are_decoded() -> None:
    """The size limit on JSON counts only characters outside strings, so long strings are valid."""
    text = '[]{},"\\' * STRUCTURE_LIMIT_BYTES

    assert [text, "a"] == load_value(dump_value([text, "a"]).encode())


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (headers()[1:], "does not begin with capsule.json"),
        (headers()[:1], "config.json is missing"),
        (headers(format=2), "'format': Input should be 1; a newer version of Tenantry may"),
        (headers(surprise=1), "'surprise': Extra inputs are not permitted"),
        (headers(tables=TABLES[::-1]), "'tables': Value error, the table names are not sorted"),
        (headers(tables=TABLES[:1] * 2), "'tables': Value error, the table names are not sorted"),
        (headers(tables=[TABLES[0] | {"name": "\x1b[31m"}]), "holds control characters"),
        (headers(tables=[1] * 100_000), "'tables.0': Input should be an object"),
        (headers(tenantry="\n"), "'tenantry': Value error, the name holds control characters"),
        (
            headers(config=b'{"dict":[["A",[' + b"[]," * STRUCTURE_LIMIT_BYTES + b"[]]]]}"),
            "more than 1 MiB outside of strings",
        ),
        (headers(config=b'"' + b"x" * HEADER_LIMIT_BYTES + b'"'), "exceeds the limit of 4 MiB"),
        (headers(config=b"[]"), "config.json does not hold a dict"),
        (headers(tenant="x" * HEADER_LIMIT_BYTES), "exceeds the limit of 4 MiB"),
        (
            headers(tables=[{"name": "a", "columns": [""] * 600_000}]),
            "more than 1 MiB outside of strings",
        ),
    ],
    ids=range(14),
)
def test_bad_headers_are_rejected(read: Read, first: Members, reason: str) -> None:
    """A backup file must begin with `capsule.json` and `config.json`, both valid and small."""
    with pytest.raises(CapsuleError, match=reason):
        read(first=first)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("files/a", b""), ("files/a", b"")], "'files/a' twice"),
        ([("files/b", b""), ("files/a", b"")], "'files/a' twice, or in the wrong order"),
        ([("capsule.json", b"{}")], "this version does not know"),
        ([("tables/a/000001.jsonl", b"")] * 2, "000001.jsonl' twice"),
        ([("tables/b/000001.jsonl", b""), ("tables/a/000001.jsonl", b"")], "in the wrong order"),
        ([("files/a", b""), ("tables/a/000001.jsonl", b"")], "in the wrong order"),
        ([("tables/c/000001.jsonl", b"")], "this version does not know"),
        ([("tables/a/1.jsonl", b"")], "this version does not know"),
        ([("tables/a/../a/000001.jsonl", b"")], "this version does not know"),
        ([("tables/a/000001.jsonl", b"[1]\n[2")], "the last row is incomplete"),
        ([("files/../a", b"")], "not the path of a file"),
        ([("files/a/", b"")], "not the path of a file"),
        ([("files/.restoring", b"")], "never part of a capsule"),
    ],
    ids=range(13),
)
def test_bad_members_are_rejected(read: Read, members: Members, reason: str) -> None:
    """In a backup file, the rows come first, by table and number, and then the files, by name."""
    with pytest.raises(CapsuleError, match=reason):
        read(*members, first=headers(tables=TABLES))


def test_a_capsule_is_counted_while_it_is_read(read: Read) -> None:
    """Before a restore creates anything, it knows the number of rows and files and their sizes."""
    members = [("tables/b/000001.jsonl", b"[1]\n[2]\n"), ("tables/b/000002.jsonl", b"[3]\n")]
    members += [("files/a/b", b"12"), ("files/c", b"1")]

    summary = read(*members, first=headers(tables=TABLES)).summary

    assert {"a": 0, "b": 3} == summary.rows
    assert (2, 3, 12, 15) == (
        summary.files, summary.files_size_bytes, summary.rows_size_bytes, summary.size_bytes
    )  # fmt: skip


def test_rows_come_in_batches(read: Read) -> None:
    """A restore keeps about 1 MiB of rows in memory, however many rows a backup file has."""
    text = "x" * (ROW_CHUNK_BYTES // 4)
    lines = [dump_value([f"{number}{text}"]).encode() + b"\n" for number in range(10)]
    chunk = ("tables/a/000001.jsonl", b"".join(lines))
    capsule = read(chunk, first=headers(tables=TABLES))

    with capsule.path.open("rb") as file:
        batches = [
            [row[0][0] for row in rows]
            for member, table in capsule.members(file)
            for rows in read_rows(member, 1)
            if table
        ]

    assert ["0123", "4567", "89"] == ["".join(batch) for batch in batches]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{}", "not a value"), (b"1", "one value for each column"),
        (b"[1,2]", "one value for each column"), (b"", "not a value"), (b"[1]\r[2]", "not a value"),
    ],
)  # fmt: skip
def test_a_bad_row_is_rejected(read: Read, line: bytes, reason: str) -> None:
    """A row of a backup file must be a list with one value for each column."""
    capsule = read(("tables/a/000001.jsonl", line + b"\n"), first=headers(tables=TABLES))

    with capsule.path.open("rb") as file, pytest.raises(CapsuleError, match=reason):
        [list(read_rows(member, 1)) for member, _ in capsule.members(file)]


def test_a_capsule_that_changes_after_the_check_is_rejected(read: Read) -> None:
    """A restore fails if another file replaces the backup file after the restore has checked it."""
    capsule = read(("files/a", b"1"))
    read(("files/a", b"2"))

    with (
        capsule.path.open("rb") as file,
        pytest.raises(CapsuleError, match="changed while it was read"),
    ):
        list(capsule.members(file))


@pytest.mark.parametrize(
    "text", ["/a", "../a", "a/..", "a//b", "./a", "a\0b", "", "operator_state.json", "levers.json"]
)
def test_a_path_cannot_leave_the_folder(text: str) -> None:
    """A path in a backup file must not leave the tenant's folder or name a file of the host."""
    with pytest.raises(ValueError, match=r"not the path of a file|never part of a capsule"):
        checked_path(text)
