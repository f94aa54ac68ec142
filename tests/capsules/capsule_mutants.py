"""Makes mutated backup files for the fuzzer. Most mutants have correct hashes."""

import contextlib
import json
import random
from collections.abc import Callable

from capsule_files import METADATA, archive, sealed
from tenantry.capsules.json_values import dump_value

Members = list[tuple[str, bytes]]
Mutate = Callable[[random.Random, Members], Members]

NAMES = (
    "",
    ".",
    "..",
    "/",
    "/etc/x",
    "../x",
    "files/../../x",
    "files/..",
    "files//x",
    "files/a/../../b",
    "files/fuzz.sqlite3",
    "files/fuzz.sqlite3-wal",
    "files/.restoring",
    "files/operator_state.json",
    "files/.quota",
    "files/templates/x.html",
    "files/static/x.js",
    "files/a\0b",
    "files/\ud800",
    "files/" + "x" * 300,
    "files/" + "x/" * 900 + "y",
    "files/a/b/c",
    "tables/odd/000002.jsonl",
    "tables/odd/1.jsonl",
    "tables/../x",
    "tables/sqlite_master/000001.jsonl",
    "manifest.jsonl",
    "capsule.json",
    "config.json",
    "files/\u202etxt",
    "files/a\nb",
    "files/~root/x",
)

VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1 << 63,
    1 << 200,
    1.5,
    float("inf"),
    "",
    "..",
    "/etc/passwd",
    "x" * 70,
    "\0",
    "\ud800",
    "'; DROP TABLE odd; --",
    '"',
    "a.b",
    "%s",
    "{{ 7 * 7 }}",
    "CHECK",
    "alembic_version",
    "sqlite_sequence",
    "tenantry_restoring",
    [],
    {},
    [[]],
    [[[[[]]]]],
    ["a", "a"],
    {"a": {}},
    {"bytes": "!"},
    {"dict": []},
    {"dict": [["SECRET_KEY", "x" * 40]]},
    {"date": "0000-00-00"},
    {"uuid": "x"},
)
"""Values that replace a part of the JSON in a capsule."""

CONFIG_KEYS = (
    "SECRET_KEY",
    "SECRET_KEY_FALLBACKS",
    "DATABASE_URI",
    "DATABASE_OPTIONS",
    "URL_PREFIX",
    "DEBUG",
    "ENV",
    "APP",
    "APP_DIR",
    "STORAGE",
    "CLIENTS",
    "OIDC",
    "BLUEPRINTS",
    "TRUSTED_HOSTS",
    "QUOTA_BYTES",
    "RATE_LIMIT",
    "ENABLED",
    "MAINTENANCE",
    "TEMPLATE_FOLDER",
    "A = 1\nB",
    "__CLASS__",
    "\uff33",
    "a",
)


def members_of_a_capsule() -> Members:
    """Return the members of a valid capsule with a table, rows and files."""
    columns = [
        {"name": "id", "type": "INTEGER", "is_autoincrement": True, "is_nullable": False},
        {"name": "name", "type": "VARCHAR", "length": 40, "default": {"kind": "text", "text": "x"}},
        {"name": "parent", "type": "INTEGER"},
    ]
    key = {"columns": ["parent"], "table": "odd", "referred": ["id"], "on_delete": "CASCADE"}
    index = {"name": "by_name", "columns": ["name"], "is_unique": True}
    definition = {
        "columns": columns, "primary_key": ["id"], "foreign_keys": [key], "indexes": [index]
    }  # fmt: skip
    table = {
        "name": "odd", "columns": ["id", "name", "parent"], "positions": {"id": 9},
        "definition": definition,
    }  # fmt: skip
    metadata = METADATA | {"tenant": "fuzz", "tables": [table], "unknown_revisions": ["0123"]}
    config = {"BLUEPRINTS": ["landing"], "THEME": "dark", "APP_NAME": "fuzz", "LIMITS": {"a": [1]}}
    return [
        ("capsule.json", json.dumps(metadata).encode()),
        ("config.json", dump_value(config).encode()),
        ("tables/odd/000001.jsonl", b'[1,"a",null]\n[2,"b",1]\n'),
        ("files/a.txt", b"a"),
        ("files/b/c.txt", b"c" * 600),
    ]


# -- mutations ------------------------------------------------------------------------------------


def rename_member(chance: random.Random, members: Members) -> Members:
    """Give a member a hostile name."""
    place = chance.randrange(len(members))
    return [
        (chance.choice(NAMES) if number == place else name, content)
        for number, (name, content) in enumerate(members)
    ]


def reorder_members(chance: random.Random, members: Members) -> Members:
    """Repeat, remove or swap members."""
    changed = list(members)
    place = chance.randrange(len(changed))
    kind = chance.randrange(4)
    if kind == 0:
        changed.insert(chance.randrange(len(changed)), changed[place])
    elif kind == 1:
        del changed[place]
    elif kind == 2:
        chance.shuffle(changed)
    else:
        changed.append((chance.choice(NAMES), chance.randbytes(20)))
    return changed


def change_json(chance: random.Random, members: Members) -> Members:
    """Replace, repeat or remove a part of the JSON of a header, or of a row."""
    place = chance.choice([0, 0, 0, 1, 2])
    name, content = members[place]
    lines = content.splitlines()
    number = chance.randrange(len(lines))
    document = json.loads(lines[number])
    _change_value(chance, document)
    with contextlib.suppress(ValueError):
        lines[number] = json.dumps(document).encode()
    changed = list(members)
    changed[place] = (name, b"\n".join(lines) + b"\n")
    return changed


def _change_value(chance: random.Random, document: object) -> None:
    """Change one value below a JSON list or object, at a random depth."""
    places: list[tuple[dict[str, object] | list[object], object]] = []
    _collect(document, places)
    if not places:
        return
    holder, key = chance.choice(places)
    if isinstance(holder, dict) and isinstance(key, str):
        if chance.random() < 0.15:
            del holder[key]
        elif chance.random() < 0.15:
            holder[str(chance.choice(VALUES))[:20]] = chance.choice(VALUES)
        else:
            holder[key] = chance.choice(VALUES)
    elif isinstance(holder, list) and isinstance(key, int):
        holder[key] = chance.choice(VALUES)


def _collect(value: object, places: list[tuple[dict[str, object] | list[object], object]]) -> None:
    if isinstance(value, dict):
        for key in value:
            places.append((value, key))
            _collect(value[key], places)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            places.append((value, number))
            _collect(one, places)


def change_config(chance: random.Random, members: Members) -> Members:
    """Add a key of Tenantry, a key of Flask or an unknown key to the configuration."""
    changed = list(members)
    key = chance.choice(CONFIG_KEYS)
    entries = [["BLUEPRINTS", ["landing"]], [key, chance.choice(VALUES)]]
    with contextlib.suppress(UnicodeEncodeError):
        changed[1] = ("config.json", json.dumps({"dict": entries}).encode())
    return changed


def change_bytes(chance: random.Random, members: Members) -> Members:
    """Change, remove or add bytes in one member."""
    changed = list(members)
    place = chance.randrange(len(changed))
    name, content = changed[place]
    changed[place] = (name, flip(chance, content))
    return changed


def flip(chance: random.Random, content: bytes) -> bytes:
    """Change, remove or repeat a few bytes."""
    data = bytearray(content or b"x")
    for _ in range(chance.choice([1, 1, 2, 5])):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(4)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place : place + chance.choice([1, 4, 512])]
        elif kind == 2:
            data[place:place] = chance.randbytes(chance.choice([1, 8]))
        else:
            data[place:place] = bytes(data[place : place + chance.choice([3, 64, 512])])
        data = data or bytearray(b"x")
    return bytes(data)


MUTATIONS: tuple[Mutate, ...] = (
    rename_member, reorder_members, change_json, change_json, change_json, change_config,
    change_config, change_bytes,
)  # fmt: skip


def make_mutant(seed: int, number: int) -> bytes:
    """Return one mutated capsule, which depends only on the seed and the number."""
    chance = random.Random(f"{seed}-{number}")
    members = members_of_a_capsule()
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        # An earlier mutation may leave a later mutation nothing to change.
        with contextlib.suppress(ValueError, IndexError, RecursionError):
            members = chance.choice(MUTATIONS)(chance, members) or members
    content = _archive(members)
    kind = chance.random()
    if kind < 0.08:
        return flip(chance, sealed(content))
    if kind < 0.25:
        return sealed(flip(chance, content))
    if kind < 0.28:
        return sealed(content, chance.choice([0, 1, len(content) - 1, 1 << 40]))
    return sealed(content)


def _archive(members: Members) -> bytes:
    try:
        return archive(members)
    except (ValueError, UnicodeError):
        return archive(members_of_a_capsule())
