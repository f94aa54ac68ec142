"""The HTTP resources of a tenant's images."""

import re
from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

from flask import Response, current_app, request, send_file, url_for
from flask_restful import Resource, abort, reqparse

from tenantry import FolderQuota, db
from tenantry.files.memory_budget import DECODING_MEMORY, MemoryBudget

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

STATUS_OF: Mapping[type[Exception], HTTPStatus] = {
    BadRequestError: HTTPStatus.BAD_REQUEST,
    UnknownImageError: HTTPStatus.NOT_FOUND,
    WrongTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    BrokenImageError: HTTPStatus.UNPROCESSABLE_ENTITY,
    BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
    MissingContentError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

CACHE_S = 24 * 60 * 60
"""Time for which a browser may cache an image. The bytes never change, but an image may be
deleted."""

RETRY_AFTER_S = 2
"""`Retry-After` while other images use all memory for decoding. The largest images take 0.5 s."""

JsonResponse = tuple[dict[str, Any], int] | tuple[dict[str, Any], int, dict[str, str]]


def with_error_responses(view: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors of the models into responses with the error's status and text."""

    @wraps(view)
    def answer(*args: object, **kwargs: object) -> Any:
        try:
            return view(*args, **kwargs)
        except tuple(STATUS_OF) as error:
            if isinstance(error, MissingContentError):
                current_app.logger.error("images.content_missing", extra=kwargs)
            headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, BusyError) else {}
            return {"message": str(error)}, STATUS_OF[type(error)], headers

    return answer


class ImageResource(Resource):  # type: ignore[misc]
    """Base class of all image resources, with the tenant's repository and error responses."""

    method_decorators = (with_error_responses,)

    @property
    def repo(self) -> ImageRepoModel:
        """The images of the current tenant."""
        return ImageRepoModel(db.session, Path(current_app.instance_path, "images"))

    @property
    def memory(self) -> MemoryBudget:
        """The process's memory budget for decoding."""
        memory: MemoryBudget = current_app.extensions[DECODING_MEMORY]
        return memory


class ImageList(ImageResource):
    """The resource of all images of a tenant."""

    def get(self) -> JsonResponse:
        """Return a list of up to `?limit=` images, newest first, starting at `?cursor=`."""
        parser = reqparse.RequestParser()
        parser.add_argument("limit", type=_one_of(PAGE_LIMITS), location="args", default=20)
        parser.add_argument("cursor", location="args")
        arguments = parser.parse_args()
        images, cursor = self.repo.page(arguments["limit"], arguments["cursor"])
        return {"images": [image.data() for image in images], "next": cursor}, HTTPStatus.OK

    def post(self) -> JsonResponse:
        """Store an image: the multipart field `file`, or the raw body with the name `?name=`."""
        body, name = _upload()
        quota = FolderQuota(Path(current_app.instance_path), current_app.config["QUOTA_BYTES"])
        with quota.reserve(request.content_length or 0):
            image = self.repo.add(body, request.args.get("name", name), self.memory)
        location = url_for(".image", image_id=image.id)
        return image.data(), HTTPStatus.CREATED, {"Location": location}


class ImageItem(ImageResource):
    """The resource of one image's record."""

    def get(self, image_id: str) -> JsonResponse:
        """Return the image's record."""
        return self.repo.get(image_id).data(), HTTPStatus.OK

    def delete(self, image_id: str) -> tuple[str, int]:
        """Delete the image and its record."""
        self.repo.delete(image_id)
        return "", HTTPStatus.NO_CONTENT


class ImageContent(ImageResource):
    """The resource of one image's bytes."""

    def get(self, image_id: str) -> Response:
        """Send the image's bytes, a range of the bytes, or 304."""
        with self.repo.content(image_id) as (image, path):
            response = _unchanged(image.sha256) or send_file(
                path,
                mimetype=image.media_type,
                download_name=image.name,
                etag=image.sha256,
                last_modified=image.created,
            )
        return _isolated(response)


class ImageThumbnail(ImageResource):
    """A smaller version of one image, drawn for each request that does not get 304.

    Thumbnails are not stored, because stored thumbnails use the tenant's quota and can be outdated,
    orphaned or lost.
    """

    def get(self, image_id: str) -> Response:
        """Send a thumbnail of at most `?size=` pixels in width and height, or 304."""
        parser = reqparse.RequestParser()
        parser.add_argument("size", type=_one_of(THUMBNAIL_PX), location="args", default=256)
        size_px = parser.parse_args()["size"]
        with self.repo.content(image_id) as (image, path):
            etag = f"{image.sha256}-{size_px}"
            response = _unchanged(etag)
            if response is None:
                drawn, media_type = draw_thumbnail(path, size_px, self.memory)
                response = current_app.response_class(drawn, mimetype=media_type)
                response.set_etag(etag)
        return _isolated(response)


def _upload() -> tuple[IO[bytes], str]:
    """Return the uploaded bytes and the file name from the client."""
    if request.mimetype != "multipart/form-data":
        return request.stream, ""
    files = request.files.getlist("file")
    if len(files) != 1:
        text = f"Send one image in the field 'file', or as the body; found {len(files)}."
        abort(HTTPStatus.BAD_REQUEST, message=text)
    return files[0].stream, files[0].filename or ""


def _one_of(numbers: range) -> Callable[[str], int]:
    """Return a parser of ASCII digits that accepts only the given numbers."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) not in numbers:
            raise ValueError(f"expected {numbers[0]} to {numbers[-1]}")
        return int(text)

    return parse


def _unchanged(etag: str) -> Response | None:
    """Return 304 if the client has the bytes; abort with 412 if a precondition fails; else None.

    Preconditions are evaluated before the range (RFC 9110 §13.2.2).
    """
    response = current_app.response_class()
    response.set_etag(etag)
    response.make_conditional({**request.environ, "HTTP_RANGE": ""})
    if response.status_code == HTTPStatus.PRECONDITION_FAILED:
        abort(HTTPStatus.PRECONDITION_FAILED, message="A precondition of the request is not met.")
    return None if response.status_code == HTTPStatus.OK else response


def _isolated(response: Response) -> Response:
    """Keep a response out of shared caches, and keep browsers from showing an image as a page."""
    response.headers["Cache-Control"] = f"private, max-age={CACHE_S}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    return response
