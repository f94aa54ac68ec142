"""The images of a tenant, over HTTP."""

import re
from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

from flask import Response, current_app, request, send_file, url_for
from flask_restful import Resource, abort, reqparse

from tenantry.database.session import db
from tenantry.storage.quota import FolderQuota, QuotaExceededError

from .models import (
    PAGE_LIMITS,
    THUMBNAIL_PX,
    BadRequestError,
    BrokenImageError,
    BusyError,
    ImageRepoModel,
    MissingContentError,
    UnknownImageError,
    WrongTypeError,
    draw_thumbnail,
)

STATUS: Mapping[type[Exception], HTTPStatus] = {
    BadRequestError: HTTPStatus.BAD_REQUEST,
    UnknownImageError: HTTPStatus.NOT_FOUND,
    WrongTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    BrokenImageError: HTTPStatus.UNPROCESSABLE_ENTITY,
    BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
    MissingContentError: HTTPStatus.INTERNAL_SERVER_ERROR,
    QuotaExceededError: HTTPStatus.INSUFFICIENT_STORAGE,
}

CACHE_S = 24 * 60 * 60
"""How long a browser may keep bytes: they never change, but their image may be deleted."""

RETRY_AFTER_S = 2
"""When to come again where others take all the memory: the largest images take half a second."""

Answer = tuple[dict[str, Any], int] | tuple[dict[str, Any], int, dict[str, str]]


def explained(view: Callable[..., Any]) -> Callable[..., Any]:
    """Answer with the status and the text of what a model refuses."""

    @wraps(view)
    def answer(*args: object, **kwargs: object) -> Any:
        try:
            return view(*args, **kwargs)
        except tuple(STATUS) as error:
            if isinstance(error, MissingContentError):
                current_app.logger.error("images.content_missing", extra=kwargs)
            later = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, BusyError) else {}
            return {"message": str(error)}, STATUS[type(error)], later

    return answer


class ImageResource(Resource):  # type: ignore[misc]
    """What all of them have in common: the tenant's repository, and how refusals are told."""

    method_decorators = (explained,)

    @property
    def repo(self) -> ImageRepoModel:
        """The images of the tenant that is asked."""
        return ImageRepoModel(db.session, Path(current_app.instance_path, "images"))


class ImageList(ImageResource):
    """All images."""

    def get(self) -> Answer:
        """List images, newest first: `?limit=` of them, on from `?cursor=`."""
        parser = reqparse.RequestParser()
        parser.add_argument("limit", type=_one_of(PAGE_LIMITS), location="args", default=20)
        parser.add_argument("cursor", location="args")
        arguments = parser.parse_args()
        images, cursor = self.repo.page(arguments["limit"], arguments["cursor"])
        return {"images": [image.data() for image in images], "next": cursor}, HTTPStatus.OK

    def post(self) -> Answer:
        """Store an image: the multipart field `file`, or the body as it is with its `?name=`."""
        body, name = _upload()
        with _quota().adding(request.content_length or 0):
            image = self.repo.add(body, request.args.get("name", name))
        location = url_for(".image", image_id=image.id)
        return image.data(), HTTPStatus.CREATED, {"Location": location}


class ImageItem(ImageResource):
    """One image's data."""

    def get(self, image_id: str) -> Answer:
        """Tell about it."""
        return self.repo.get(image_id).data(), HTTPStatus.OK

    def delete(self, image_id: str) -> tuple[str, int]:
        """Delete it."""
        self.repo.delete(image_id)
        return "", HTTPStatus.NO_CONTENT


class ImageContent(ImageResource):
    """One image's bytes."""

    def get(self, image_id: str) -> Response:
        """Send them, or a range of them, unless the client has them."""
        with self.repo.content(image_id) as (image, path):
            answer = _unchanged(image.sha256) or send_file(
                path,
                mimetype=image.media_type,
                download_name=image.name,
                etag=image.sha256,
                last_modified=image.created,
            )
        return _kept_apart(answer)


class ImageThumbnail(ImageResource):
    """A smaller picture of an image, drawn each time that a client asks who does not have it.

    Drawing costs less than what stored thumbnails would: room in the tenant's quota, and one more
    thing that can be stale, orphaned or lost.
    """

    def get(self, image_id: str) -> Response:
        """Send it, at most `?size=` pixels wide and high, unless the client has it."""
        parser = reqparse.RequestParser()
        parser.add_argument("size", type=_one_of(THUMBNAIL_PX), location="args", default=256)
        size = parser.parse_args()["size"]
        with self.repo.content(image_id) as (image, path):
            etag = f"{image.sha256}-{size}"
            answer = _unchanged(etag)
            if answer is None:
                drawn, media_type = draw_thumbnail(path, size)
                answer = current_app.response_class(drawn, mimetype=media_type)
                answer.set_etag(etag)
        return _kept_apart(answer)


def _upload() -> tuple[IO[bytes], str]:
    """Return the bytes that a client sends, and the name that it gives them."""
    if request.mimetype != "multipart/form-data":
        return request.stream, ""
    files = request.files.getlist("file")
    if len(files) != 1:
        text = f"Send one image in the field 'file', or as the body; found {len(files)}."
        abort(HTTPStatus.BAD_REQUEST, message=text)
    return files[0].stream, files[0].filename or ""


def _quota() -> FolderQuota:
    return FolderQuota(Path(current_app.instance_path), current_app.config["QUOTA_BYTES"])


def _one_of(numbers: range) -> Callable[[str], int]:
    """Return a parser of numbers, and nothing else that Python would take for one."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) not in numbers:
            raise ValueError(f"expected {numbers[0]} to {numbers[-1]}")
        return int(text)

    return parse


def _unchanged(etag: str) -> Response | None:
    """Return 304 for a client that has the bytes, and end with 412 where it wants others.

    They come before a range (RFC 9110 §13.2.2), and before any work.
    """
    answer = current_app.response_class()
    answer.set_etag(etag)
    answer.make_conditional({**request.environ, "HTTP_RANGE": ""})
    if answer.status_code == HTTPStatus.PRECONDITION_FAILED:
        abort(HTTPStatus.PRECONDITION_FAILED, message="The image is not the one that is asked for.")
    return None if answer.status_code == HTTPStatus.OK else answer


def _kept_apart(answer: Response) -> Response:
    """Make sure that only this client's browser keeps it, and takes it for nothing but an image."""
    answer.headers["Cache-Control"] = f"private, max-age={CACHE_S}"
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    return answer
