"""What a capsule says is what Tenantry writes, in its order and in its bounds, or it is refused."""

import uuid
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from capsule_files import Parts, archive, heads, quiet, sealed
from tenantry.capsules import Capsule, read_capsule
from tenantry.capsules.archive import CapsuleError
from tenantry.capsules.capsule import HEAD_LIMIT_BYTES, PART_BYTES
from tenantry.capsules.json_values import FORM_LIMIT_BYTES, dump_value, load_value
from tenantry.capsules.reading import parts_again, rows_of
from tenantry.capsules.tenant_folder import checked_path

TABLES = [{"name": name, "columns": ["id"]} for name in ("a", "b")]

Read = Callable[..., Capsule]


@pytest.fixture(name="read")
def _read(tmp_path: Path) -> Read:
    """Return a function that writes a capsule of some parts, and reads it."""

    def read(*parts: tuple[str, bytes], begins: Parts | None = None) -> Capsule:
        path = tmp_path / "a.capsule"
        path.write_bytes(sealed(archive([*(heads() if begins is None else begins), *parts])))
        return read_capsule(path, quiet)

    return read


def test_values_come_back_exactly() -> None:
    """Whatever a row or a tenant file can hold is the same after JSON, its type included."""
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
def test_what_is_no_value_is_refused(text: str) -> None:
    """Whatever JSON holds, reading makes plain data of it or says that it is none."""
    with pytest.raises(ValueError, match="no value of a capsule"):
        load_value(text.encode())


@pytest.mark.parametrize("item", ["[]", '""', '"a\\"\\\\"'])
def test_many_small_values_are_refused(item: str) -> None:
    """A text that would take twenty times its size in memory is not parsed at all."""
    count = FORM_LIMIT_BYTES + 2

    with pytest.raises(ValueError, match="1 MiB of it are no texts"):
        load_value(b"[" + b",".join([item.encode()] * count) + b"]")


def test_large_texts_are_read() -> None:
    """What counts is what stands outside texts, whatever stands in them."""
    text = '[]{},"\\' * FORM_LIMIT_BYTES

    assert [text, "a"] == load_value(dump_value([text, "a"]).encode())


@pytest.mark.parametrize(
    ("begins", "reason"),
    [
        (heads()[1:], "does not begin with capsule.json"),
        (heads()[:1], "config.json: it is not there"),
        (heads(format=2), "'format': Input should be 1; a newer Tenantry may know it"),
        (heads(surprise=1), "'surprise': Extra inputs are not permitted"),
        (heads(tables=TABLES[::-1]), "'tables': Value error, they are not in the order"),
        (heads(tables=TABLES[:1] * 2), "'tables': Value error, they are not in the order"),
        (heads(tables=[TABLES[0] | {"name": "\x1b[31m"}]), "holds control characters"),
        (heads(tables=[1] * 100_000), "'tables.0': Input should be an object"),
        (heads(tenantry="\n"), "'tenantry': Value error, holds control characters"),
        (heads(config=b'{"dict":[["A",[' + b"[]," * FORM_LIMIT_BYTES + b"[]]]]}"), "no texts"),
        (heads(config=b'"' + b"x" * HEAD_LIMIT_BYTES + b'"'), "larger than any that Tenantry"),
        (heads(config=b"[]"), "config.json: it is no configuration"),
        (heads(tenant="x" * HEAD_LIMIT_BYTES), "larger than any that Tenantry writes"),
        (heads(tables=[{"name": "a", "columns": [""] * 600_000}]), "1 MiB of it are no texts"),
    ],
    ids=range(14),
)
def test_bad_heads_are_refused(read: Read, begins: Parts, reason: str) -> None:
    """What a capsule says of itself is of a known form, in order, and small."""
    with pytest.raises(CapsuleError, match=reason):
        read(begins=begins)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([("files/a", b""), ("files/a", b"")], "'files/a' twice"),
        ([("files/b", b""), ("files/a", b"")], "'files/a' twice, or not in its place"),
        ([("capsule.json", b"{}")], "not known here"),
        ([("tables/a/000001.jsonl", b"")] * 2, "000001.jsonl' twice"),
        ([("tables/b/000001.jsonl", b""), ("tables/a/000001.jsonl", b"")], "not in its place"),
        ([("files/a", b""), ("tables/a/000001.jsonl", b"")], "not in its place"),
        ([("tables/c/000001.jsonl", b"")], "not known here"),
        ([("tables/a/1.jsonl", b"")], "not known here"),
        ([("tables/a/../a/000001.jsonl", b"")], "not known here"),
        ([("tables/a/000001.jsonl", b"[1]\n[2")], "its last row is cut"),
        ([("files/../a", b"")], "none of a tenant's file"),
        ([("files/a/", b"")], "none of a tenant's file"),
        ([("files/.restoring", b"")], "belongs in no capsule"),
    ],
    ids=range(13),
)
def test_bad_parts_are_refused(read: Read, parts: Parts, reason: str) -> None:
    """Parts come once and in order: tables by name, their rows by number, files by name."""
    with pytest.raises(CapsuleError, match=reason):
        read(*parts, begins=heads(tables=TABLES))


def test_what_is_read_is_counted(read: Read) -> None:
    """Rows, files and folders are known before anything is made."""
    names = ["a/b/c", "a/b/d", "a/e", "a.x/f", "a0/b/g", "h"]
    parts = [("tables/b/000001.jsonl", b"[1]\n[2]\n"), ("tables/b/000002.jsonl", b"[3]\n")]
    parts += [(f"files/{name}", b"12") for name in sorted(names)]

    capsule = read(*parts, begins=heads(tables=TABLES))

    amounts = capsule.summary
    assert {"a": 0, "b": 3} == amounts.rows
    assert (6, 12, 12, 24) == (
        amounts.files, amounts.files_size_bytes, amounts.rows_size_bytes, amounts.size_bytes
    )  # fmt: skip
    assert 5 == capsule.folders


def test_rows_come_in_batches(read: Read) -> None:
    """However many rows a part has, about a MiB of them is in memory at a time."""
    text = "x" * (PART_BYTES // 4)
    lines = [dump_value([f"{number}{text}"]).encode() + b"\n" for number in range(10)]
    part = ("tables/a/000001.jsonl", b"".join(lines))
    capsule = read(part, begins=heads(tables=TABLES))

    with capsule.path.open("rb") as file:
        batches = [
            [row[0][0] for row in rows]
            for part, table in parts_again(capsule, file)
            for rows in rows_of(part, 1)
            if table
        ]

    assert ["0123", "4567", "89"] == ["".join(one) for one in batches]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{}", "no value"), (b"1", "a row has not"), (b"[1,2]", "a row has not"),
        (b"", "no value"), (b"[1]\r[2]", "no value"),
    ],
)  # fmt: skip
def test_what_is_no_row_is_refused(read: Read, line: bytes, reason: str) -> None:
    """A row has a value for each column."""
    part = ("tables/a/000001.jsonl", line + b"\n")
    capsule = read(part, begins=heads(tables=TABLES))

    with capsule.path.open("rb") as file, pytest.raises(CapsuleError, match=reason):
        [list(rows_of(part, 1)) for part, _ in parts_again(capsule, file)]


def test_a_capsule_that_changes_is_noticed(read: Read) -> None:
    """What was checked is what is used: another capsule of the same name is not."""
    capsule = read(("files/a", b"1"))
    read(("files/a", b"2"))

    with capsule.path.open("rb") as file, pytest.raises(CapsuleError, match="it was changed"):
        list(parts_again(capsule, file))


@pytest.mark.parametrize(
    "text", ["/a", "../a", "a/..", "a//b", "./a", "a\0b", "", "operator_state.json"]
)
def test_no_path_leaves_the_folder(text: str) -> None:
    """A path that is not plainly one below the folder is refused."""
    with pytest.raises(ValueError, match=r"tenant's file|in no capsule"):
        checked_path(text)
