"""The images endpoint works over HTTP, on SQLite and on PostgreSQL."""

import hashlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask, request
from PIL import Image
from sqlalchemy import create_engine, inspect, update
from werkzeug.http import parse_options_header
from werkzeug.test import Client, TestResponse

import postgres
from image_files import TYPES, picture
from image_tables import downgrade, migrate
from tenantry import db
from tenantry.app.factory import close_app, create_app
from tenantry.database.budget import ConnectionBudget
from tenantry.endpoints.images.consistency import ImageConsistencyModel
from tenantry.endpoints.images.models import Base, ImageModel
from tenantry.files.memory_budget import DECODING_MEMORY, MemoryBudget

ONE = picture("JPEG")
UNKNOWN = "/images/01a20372-c35a-77dc-bd17-3bf6f6e524dc"
NewApp = Callable[..., Flask]
on_both = pytest.mark.parametrize("engine", ["sqlite", "postgresql"])


class WholeClient(Client):
    """A client that reads and closes each response, as a server does."""

    def open(self, *args: Any, buffered: bool = True, **kwargs: Any) -> TestResponse:
        """Send a request."""
        return super().open(*args, buffered=buffered, **kwargs)


@pytest.fixture(name="engine")
def _engine() -> str:
    """Return the engine for tests that run on only one database engine."""
    return "sqlite"


@pytest.fixture(scope="module", name="migrated")
def _migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQLite database with empty image tables, which tests copy."""
    path = tmp_path_factory.mktemp("migrated") / "images.sqlite3"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(name="new_uri")
def _new_uri(
    engine: str, postgres_server: postgres.Postgres, migrated: Path, tmp_path: Path
) -> Callable[[str], str]:
    """Return a function that creates a tenant's database with tables and returns its URL."""

    def new_uri(name: str) -> str:
        if engine == "postgresql":
            url = postgres_server.new_database()
            migrate(url)
            return url
        path = tmp_path / f"{name}.sqlite3"
        shutil.copyfile(migrated, path)
        return f"sqlite:///{path}"

    return new_uri


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(4, wait_s=0.1)


@pytest.fixture(name="new_app")
def _new_app(
    new_uri: Callable[[str], str], data_dir: Path, budget: ConnectionBudget
) -> Iterator[NewApp]:
    """Return a function that makes a tenant's app with the images endpoint.

    The fixture closes the apps after the test.
    """
    apps = []

    def new_app(name: str = "acme", **keys: object) -> Flask:
        config = {
            "APP_NAME": name,
            "SECRET_KEY": name * 32,
            "BLUEPRINTS": ["images"],
            "DATABASE_URI": new_uri(name),
        }
        apps.append(create_app(config | keys, data_dir=data_dir, budget=budget))
        return apps[-1]

    yield new_app
    for app in apps:
        close_app(app)


@pytest.fixture(name="client")
def _client(new_app: NewApp) -> Client:
    """Return a client of an app that has only the images endpoint."""
    return WholeClient(new_app())


def upload(client: Client, data: bytes = ONE, name: str = "one") -> dict[str, Any]:
    """Upload an image, and return the image's record."""
    answer = client.post(f"/images/?name={name}", data=data)
    assert 201 == answer.status_code, answer.text
    image: dict[str, Any] = answer.get_json()
    return image


def names(answer: TestResponse) -> list[str]:
    """Return the names of the images on a page."""
    return [image["name"] for image in answer.get_json()["images"]]


def stored(data_dir: Path, name: str = "acme") -> list[str]:
    """Return the names of all files that a tenant's images have, sorted."""
    folder = data_dir / name / "images"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def form(*fields: str) -> bytes:
    """Return a multipart form with file fields and one text field."""
    head = b'--x\r\nContent-Disposition: form-data; name="'
    files = [head + field.encode() + b'"; filename="a"\r\n\r\n' + ONE for field in fields]
    return b"\r\n".join([*files, head + b'file"\r\n\r\ntext', b"--x--\r\n"])


# -- uploading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_an_upload_is_described_and_stored(client: Client, data_dir: Path, kind: str) -> None:
    """Uploading an image answers 201 with `Location` and the image's record."""
    data = picture(kind)

    answer = client.post("/images/", data={"file": (BytesIO(data), "b.exe", "text/html")})
    image = answer.get_json()

    assert (201, f"/images/{image['id']}") == (answer.status_code, answer.headers["Location"])
    assert datetime.now(UTC) - datetime.fromisoformat(image.pop("created")) < timedelta(minutes=1)
    assert {
        "id": str(uuid.UUID(image["id"])),
        "name": "b.exe",
        "media_type": TYPES[kind],
        "size_bytes": len(data),
        "width": 60,
        "height": 40,
        "sha256": sha256(data),
    } == image
    assert [sha256(data)] == stored(data_dir)


def test_a_raw_body_is_an_image_too(client: Client) -> None:
    """Without a form, the request body is the image, and its name comes from `?name=`."""
    data = picture("WEBP")

    named = client.post("/images/?name=w", data=data, content_type="application/octet-stream")
    nameless = client.post("/images/", data=data, content_type="application/x-www-form-urlencoded")

    assert ("w", "image.webp") == (named.get_json()["name"], nameless.get_json()["name"])


def test_the_location_is_under_the_tenants_prefix(client: Client) -> None:
    """The `Location` of an uploaded image begins with the tenant's URL prefix."""
    answer = client.post("/images/", data=ONE, environ_overrides={"SCRIPT_NAME": "/acme"})

    assert f"/acme/images/{answer.get_json()['id']}" == answer.headers["Location"]


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"", 415, "The upload is empty. Send an image."),
        (b"<svg/>", 415, "This is not a JPEG, PNG, WebP or GIF image."),
        (ONE[:-2], 422, "This JPEG is truncated."),
        (b"GIF89a" + ONE, 422, "This GIF is damaged: a block has an unknown type."),
        (form("image"), 400,
         "Send one image in the field 'file', or as the body; found 0."),
        (form(), 400, "Send one image in the field 'file', or as the body; found 0."),
        (form("file", "file"), 400,
         "Send one image in the field 'file', or as the body; found 2."),
    ],
)  # fmt: skip
def test_a_rejected_upload_is_not_stored(
    client: Client, data_dir: Path, data: bytes, status: int, message: str
) -> None:
    """A rejected upload gets an error with the reason, and leaves neither a row nor a file."""
    is_form = data.startswith(b"--")
    content_type = "multipart/form-data; boundary=x" if is_form else "image/jpeg"

    answer = client.post("/images/", data=data, content_type=content_type)

    assert (status, {"message": message}) == (answer.status_code, answer.get_json())
    assert ([], []) == (client.get("/images/").get_json()["images"], stored(data_dir))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\me.jpg", "me.jpg"),
        ("a\x00b\r\nSet-Cookie: c\x7f\x85\u2028.jpg", "abSet-Cookie: c.jpg"),
        ("photo\u202egpj.exe", "photogpj.exe"),
        ("\ud800.jpg".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "���.jpg"),
        ("../", "image.jpeg"),
        (" \t ", "image.jpeg"),
        ('x"; filename="y.exe', 'x"; filename="y.exe'),
        ("Grüße 🦊.jpg", "Grüße 🦊.jpg"),
        ("n" * 255, "n" * 255),
    ],
)
def test_names_are_harmless(client: Client, given: str, kept: str) -> None:
    """An image's name is stored without path and control characters, and is quoted in headers."""
    image = client.post("/images/", query_string={"name": given}, data=ONE).get_json()
    answer = client.get(f"/images/{image['id']}/content")

    disposition = answer.headers["Content-Disposition"]
    assert kept == image["name"]
    assert ("inline", {"filename": kept}) == parse_options_header(disposition)
    assert (True, True) == (disposition.isascii(), disposition.isprintable())


@on_both
def test_a_clean_name_suits_both_databases(client: Client) -> None:
    """NUL is removed from an image's name, because PostgreSQL rejects it."""
    answer = client.post("/images/", query_string={"name": "a\x00ß🦊"}, data=ONE)

    assert "aß🦊" == answer.get_json()["name"]


def test_a_name_has_a_length(client: Client) -> None:
    """An image name that is too long for a file system is rejected."""
    answer = client.post("/images/?name=" + "n" * 256, data=ONE)

    assert (400, "The name is longer than 255 characters.") == (
        answer.status_code,
        answer.get_json()["message"],
    )


def test_an_incomplete_upload_leaves_nothing(client: Client, data_dir: Path) -> None:
    """An upload shorter than its `Content-Length` is rejected, even if the image is valid."""
    length = {"CONTENT_LENGTH": str(len(ONE) + 1)}

    answer = client.post("/images/", data=ONE, environ_overrides=length)

    assert (400, []) == (answer.status_code, stored(data_dir))


# -- reading --------------------------------------------------------------------------------------


@on_both
def test_a_page_continues_after_the_last_one(client: Client) -> None:
    """Uploads and deletions between two pages of the list neither repeat nor skip an image."""
    images = [upload(client, name=str(number)) for number in range(7)]

    first = client.get("/images/?limit=3")
    upload(client, name="new")
    client.delete(f"/images/{images[4]['id']}")  # delete the image to which the cursor points
    second = client.get(f"/images/?limit=2&cursor={first.get_json()['next']}")
    third = client.get(f"/images/?limit=2&cursor={second.get_json()['next']}")

    assert [["6", "5", "4"], ["3", "2"], ["1", "0"]] == [names(first), names(second), names(third)]
    assert third.get_json()["next"] is None


@on_both
def test_a_tenant_without_images_has_an_empty_list(client: Client) -> None:
    """The image list is empty before the first upload."""
    assert {"images": [], "next": None} == client.get("/images/").get_json()


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=٣", "limit=", "cursor=", "cursor=x",
     "cursor=AaIDcsNochqhJc!!!!!!!!", "cursor=ü", "cursor=" + "A" * 24],
)  # fmt: skip
def test_an_invalid_limit_or_cursor_is_rejected(client: Client, query: str) -> None:
    """An invalid `limit` or `cursor` gets 400 with the reason."""
    answer = client.get(f"/images/?{query}")

    assert 400 == answer.status_code
    assert answer.get_json()["message"]


@pytest.mark.parametrize("size", ["0", "15", "1025", "x", "", "1e2"])
def test_an_invalid_thumbnail_size_is_rejected(client: Client, size: str) -> None:
    """An invalid thumbnail size gets 400 with the allowed sizes."""
    answer = client.get(f"/images/{upload(client)['id']}/thumbnail?size={size}")

    assert (400, {"message": {"size": "expected 16 to 1024"}}) == (
        answer.status_code,
        answer.get_json(),
    )


@pytest.mark.parametrize("path", ["", "/content", "/thumbnail"])
@pytest.mark.parametrize(
    "unknown", [UNKNOWN, UNKNOWN.replace("-", ""), "/images/urn:uuid:" + UNKNOWN[8:], "/images/%00"]
)
def test_an_unknown_id_is_not_found(client: Client, unknown: str, path: str) -> None:
    """All URLs of an unknown image ID, and other spellings of a known ID, get 404."""
    answer = client.get(unknown + path)

    assert (404, {"message": "There is no image with this id."}) == (
        answer.status_code,
        answer.get_json(),
    )


def test_record_and_content_are_returned(client: Client) -> None:
    """A download equals the upload, and its headers keep a browser from running the content."""
    image = upload(client)

    data = client.get(f"/images/{image['id']}").get_json()
    answer = client.get(f"/images/{image['id']}/content")

    assert (image, ONE) == (data, answer.data)
    assert {
        "Content-Type": "image/jpeg",
        "Content-Length": str(len(ONE)),
        "Content-Disposition": "inline; filename=one",
        "ETag": f'"{sha256(ONE)}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=86400",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    } == {key: value for key, value in answer.headers if key[:1] in "CEAX"}


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({"Range": "bytes=0-9"}, 206, ONE[:10]),
        ({"Range": "bytes=-10"}, 206, ONE[-10:]),
        ({"Range": f"bytes={len(ONE) - 1}-"}, 206, ONE[-1:]),
        ({"Range": f"bytes={len(ONE)}-"}, 416, None),
        ({"Range": "bytes=9-3"}, 416, None),
        ({"Range": "bytes=x"}, 416, None),
        ({"Range": "items=0-5"}, 200, ONE),
        ({"Range": "bytes=0-0,-1"}, 200, ONE),
        ({"If-Match": "*"}, 200, ONE),
        ({"If-Range": "Wed, 01 Jan 3000 12:00:00 GMT", "Range": "bytes=0-9"}, 200, ONE),
        ({"If-None-Match": '"?"'}, 304, b""),
        ({"If-None-Match": "*"}, 304, b""),
        ({"If-None-Match": '"?"', "Range": "bytes=0-9"}, 304, b""),
        ({"If-None-Match": '"other"'}, 200, ONE),
        ({"If-Match": '"?"', "Range": "bytes=0-9"}, 206, ONE[:10]),
        ({"If-Match": '"other"'}, 412, None),
        ({"If-Match": '"other"', "Range": "bytes=0-9"}, 412, None),
        ({"If-Range": '"?"', "Range": "bytes=0-9"}, 206, ONE[:10]),
        ({"If-Range": '"other"', "Range": "bytes=0-9"}, 200, ONE),
    ],
)
def test_conditions_and_ranges(
    client: Client, headers: dict[str, str], status: int, body: bytes | None
) -> None:
    """A request's conditions are checked before its ranges (RFC 9110 §13.2.2); errors are JSON."""
    image = upload(client)
    headers = {key: value.replace("?", image["sha256"]) for key, value in headers.items()}

    answer = client.get(f"/images/{image['id']}/content", headers=headers)

    assert status == answer.status_code
    assert body == (None if answer.is_json else answer.data)


def test_a_thumbnail_can_be_cached(client: Client) -> None:
    """A thumbnail has the requested size, and a client that has cached it gets 304."""
    path = f"/images/{upload(client, picture(size=(300, 200)))['id']}/thumbnail"

    small, usual = client.get(f"{path}?size=30"), client.get(path)
    again = client.get(path, headers={"If-None-Match": usual.headers["ETag"]})

    assert [(30, 20), (256, 171)] == [Image.open(BytesIO(one.data)).size for one in (small, usual)]
    assert ("image/png", "private, max-age=86400", "nosniff") == (
        usual.content_type,
        usual.headers["Cache-Control"],
        usual.headers["X-Content-Type-Options"],
    )
    assert (304, b"") == (again.status_code, again.data)
    assert small.headers["ETag"] != usual.headers["ETag"]


@on_both
def test_no_connection_is_held_while_bytes_stream(client: Client, budget: ConnectionBudget) -> None:
    """While an image is streamed, the request holds no database connection."""
    image = upload(client)

    answer = client.get(f"/images/{image['id']}/content", buffered=False)
    idle, opened = budget.idle_count, budget.open_count
    body = b"".join(answer.response)
    answer.close()

    assert (1, 1, ONE) == (idle, opened, body)


# -- deleting -------------------------------------------------------------------------------------


@on_both
def test_the_same_bytes_twice_are_two_images_and_one_file(client: Client, data_dir: Path) -> None:
    """Uploading the same bytes twice stores one file, which stays until both images are deleted."""
    one, two = upload(client, name="one"), upload(client, name="two")
    assert one["id"] != two["id"]
    assert [sha256(ONE)] == stored(data_dir)

    assert 204 == client.delete(f"/images/{one['id']}").status_code
    assert ONE == client.get(f"/images/{two['id']}/content").data
    assert [sha256(ONE)] == stored(data_dir)

    assert 204 == client.delete(f"/images/{two['id']}").status_code
    assert [] == stored(data_dir)
    assert 404 == client.delete(f"/images/{two['id']}").status_code


def test_missing_content_is_a_server_error(client: Client, data_dir: Path) -> None:
    """If an image's file is missing, a download gets 500, not 404 or an empty response."""
    image = upload(client)
    next((data_dir / "acme/images").rglob(image["sha256"])).unlink()

    answer = client.get(f"/images/{image['id']}/content")

    assert (500, "The content of this image is missing. Tell the operator.") == (
        answer.status_code,
        answer.get_json()["message"],
    )


@pytest.mark.parametrize(
    ("path", "headers"),
    [("content", {}), ("content", {"Range": "bytes=0-9"}), ("thumbnail", {})],
)
def test_an_image_deleted_during_a_request_is_unknown(
    client: Client, monkeypatch: pytest.MonkeyPatch, path: str, headers: dict[str, str]
) -> None:
    """If an image is deleted while a request reads it, the request gets 404."""
    image = upload(client)
    opened = open

    def deleting(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith(image["sha256"]):
            client.delete(f"/images/{image['id']}")
        return opened(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", deleting)
    monkeypatch.setattr("io.open", deleting)  # `Path.open` calls `io.open`

    answer = client.get(f"/images/{image['id']}/{path}", headers=headers)

    assert (404, {"message": "There is no image with this id."}) == (
        answer.status_code,
        answer.get_json(),
    )


# -- tenants --------------------------------------------------------------------------------------


@on_both
def test_tenants_do_not_see_each_others_images(new_app: NewApp, data_dir: Path) -> None:
    """If two tenants upload the same image, each has its own row, file and ID."""
    acme, globex = WholeClient(new_app("acme")), WholeClient(new_app("globex"))
    one, two = upload(acme), upload(globex, name="two")

    assert [["one"], ["two"]] == [names(client.get("/images/")) for client in (acme, globex)]
    assert 404 == globex.get(f"/images/{one['id']}/content").status_code
    assert 404 == globex.delete(f"/images/{one['id']}").status_code
    assert 204 == globex.delete(f"/images/{two['id']}").status_code
    assert ONE == acme.get(f"/images/{one['id']}/content").data
    assert ([sha256(ONE)], []) == (stored(data_dir, "acme"), stored(data_dir, "globex"))


@on_both
def test_images_wait_for_memory_and_get_503(new_app: NewApp, data_dir: Path) -> None:
    """If all memory for decoding is in use, uploads and thumbnails get 503."""
    app = new_app()
    client = WholeClient(app)
    image = upload(client, picture())
    before = stored(data_dir)
    memory = app.extensions[DECODING_MEMORY] = MemoryBudget(1, wait_s=0)

    with memory.reserve(1):
        answers = [
            client.post("/images/", data=picture("PNG")),
            client.get(f"/images/{image['id']}/thumbnail?size=16"),
        ]

    assert [(503, "2")] * 2 == [(one.status_code, one.headers["Retry-After"]) for one in answers]
    assert before == stored(data_dir)
    assert 201 == client.post("/images/", data=picture("PNG")).status_code


def test_ids_reveal_only_the_time(client: Client) -> None:
    """Image IDs sort by time, and contain 62 random bits."""
    before = time.time_ns() // 1_000_000

    ids = [uuid.UUID(upload(client)["id"]) for _ in range(5)]

    assert ids == sorted(ids)
    assert all(before <= one.int >> 80 <= time.time_ns() // 1_000_000 for one in ids)
    assert {7} == {one.version for one in ids}
    assert 5 == len({one.int & (1 << 62) - 1 for one in ids})


def test_an_upload_above_the_quota_is_a_507(new_app: NewApp, data_dir: Path) -> None:
    """An upload above the tenant's quota gets 507 and leaves nothing behind."""
    client = WholeClient(new_app(QUOTA_BYTES=20_000))
    data = picture(size=(64, 64))  # two images of 12 kB exceed the quota
    image = upload(client, data)

    answer = client.post("/images/", data=picture(size=(64, 64)))

    message = "The storage quota is exceeded: all files together may have 20,000 bytes."
    assert (507, {"message": message}) == (answer.status_code, answer.get_json())
    assert [sha256(data)] == stored(data_dir)
    assert data == client.get(f"/images/{image['id']}/content").data


# -- tables ---------------------------------------------------------------------------------------


@on_both
def test_the_migration_creates_the_models_tables(new_uri: Callable[[str], str]) -> None:
    """The migration creates exactly the tables of the models, and the downgrade removes them."""
    engine = create_engine(new_uri("acme"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        difference = compare_metadata(context, Base.metadata)
    downgrade(engine)
    tables = inspect(engine).get_table_names()
    engine.dispose()

    assert ([], ["alembic_version"]) == (difference, tables)


# -- names in forms -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "kept"),
    [
        (rb'filename="C:\Users\me\cat.png"', "cat.png"),
        (rb'filename="C:\\Users\\me\\cat.png"', "cat.png"),
        (rb'filename="\\server\new\table.png"', "table.png"),
        (b'filename="caf\xe9.png"', "café.png"),
        ('filename="café.png"'.encode(), "café.png"),
        (b"filename=\"x.png\"; filename*=UTF-8''caf%C3%A9.png", "café.png"),
        (b"filename*=UTF-8''caf%C3%A9.png; filename=\"x.png\"", "café.png"),
        (rb'filename="my \"cat\".png"', 'my "cat".png'),
        (b'filename="a;b.png"', "a;b.png"),
        (b"filename=cat.png", "cat.png"),
        (b'FileName="cat.png"', "cat.png"),
        (b'filename="../../cat.png"', "cat.png"),
        (b'filename="a\x00\x1bcat.png"', "acat.png"),
        (b'filename=".."', "image.jpeg"),
        (b'filename=""', "image.jpeg"),
    ],
)
def test_a_form_names_the_image(client: Client, parameter: bytes, kept: str) -> None:
    """A Windows path is reduced to its last part, and a Latin-1 name is accepted."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; ' + parameter
    data = head + b"\r\nContent-Type: image/jpeg\r\n\r\n" + ONE + b"\r\n--x--\r\n"

    answer = client.post("/images/", data=data, content_type="multipart/form-data; boundary=x")

    assert (201, kept) == (answer.status_code, answer.get_json().get("name"))
    assert ONE == client.get(f"{answer.headers['Location']}/content").data


def test_an_app_may_read_the_form_first(new_app: NewApp) -> None:
    """An upload is found in a form that another function of the app has already read."""
    app = new_app()
    app.before_request(lambda: request.form.get("none"))

    answer = WholeClient(app).post("/images/", data={"file": (BytesIO(ONE), "cat.jpg")})

    assert (201, "cat.jpg") == (answer.status_code, answer.get_json()["name"])


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=é", "multipart/form-data; boundary=y"],
)
def test_a_malformed_form_is_rejected(client: Client, content_type: str) -> None:
    """A form without its boundary gets 400."""
    answer = client.post("/images/", data=form("file"), content_type=content_type)

    assert (400, []) == (answer.status_code, client.get("/images/").get_json()["images"])


# -- damaged rows ---------------------------------------------------------------------------------

DAMAGED_HASHES = (
    "../../globex/secret", "/etc/passwd", "", "..", "A" * 64, "a" * 63, "a" * 63 + "\n",
)  # fmt: skip


@on_both
@pytest.mark.parametrize("sha256", DAMAGED_HASHES)
def test_a_row_without_a_hash_is_no_path(new_app: NewApp, data_dir: Path, sha256: str) -> None:
    """A row whose hash is not 64 hexadecimal digits is a server error, and reaches no file."""
    app = new_app()
    client = WholeClient(app)
    image, whole = upload(client), upload(client, picture("PNG"))
    secret = data_dir / "globex/secret"
    secret.parent.mkdir()
    secret.write_bytes(ONE)
    with app.app_context():
        db.session.execute(
            update(ImageModel).where(ImageModel.id == uuid.UUID(image["id"])).values(sha256=sha256)
        )
        db.session.commit()

    answers = [client.get(f"/images/{image['id']}/{path}") for path in ("content", "thumbnail")]
    answers.append(client.delete(f"/images/{image['id']}"))

    text = "The record of this image is damaged. Tell the operator."
    assert [(500, text)] * 3 == [(one.status_code, one.get_json()["message"]) for one in answers]
    with app.app_context():
        folder = data_dir / "acme/images"
        model = ImageConsistencyModel(db.session, folder, fix=True, is_thorough=True)
        found = [item.description for item in model.inconsistencies()]
    assert ["image without a file"] == found
    assert (404, 200) == tuple(
        client.get(f"/images/{one['id']}/content").status_code for one in (image, whole)
    )
    assert ONE == secret.read_bytes()
