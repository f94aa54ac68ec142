"""Defines the HTTP resources of a tenant's images."""

import re
from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import current_app, request, url_for
from flask_restful import Resource, reqparse
from werkzeug.utils import send_file
from werkzeug.wrappers import Response

from tenantry import FolderQuota, db
from tenantry.files.memory_budget import DECODING_MEMORY, MemoryBudget
from tenantry.http.conditions import ConditionalResponse

from .models import (
    PAGE_LIMITS,
    THUMBNAIL_PX,
    THUMBNAIL_VERSION,
    BrokenImageError,
    BusyError,
    ImageRepoModel,
    InvalidHashError,
    InvalidInputError,
    MissingContentError,
    UnknownImageError,
    WrongTypeError,
    draw_thumbnail,
)
from .uploads import read_upload

STATUS_OF: Mapping[type[Exception], HTTPStatus] = {
    InvalidInputError: HTTPStatus.BAD_REQUEST,
    UnknownImageError: HTTPStatus.NOT_FOUND,
    WrongTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    BrokenImageError: HTTPStatus.UNPROCESSABLE_ENTITY,
    BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
    MissingContentError: HTTPStatus.INTERNAL_SERVER_ERROR,
    InvalidHashError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

CACHE_S = 24 * 60 * 60
"""How long a browser may cache an image.

The content of an image never changes, but an image may be deleted.
"""

RETRY_AFTER_S = 2
"""Value of `Retry-After` while other images use all memory for decoding."""

JsonResponse = tuple[dict[str, Any], int] | tuple[dict[str, Any], int, dict[str, str]]


def with_error_responses(view: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a view, so that the client gets the status and the text of an `ImageError`."""

    @wraps(view)
    def answer(*args: object, **kwargs: object) -> Any:
        try:
            return view(*args, **kwargs)
        except tuple(STATUS_OF) as error:
            if STATUS_OF[type(error)] == HTTPStatus.INTERNAL_SERVER_ERROR:
                current_app.logger.error("images.content_missing", extra=kwargs)
            headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, BusyError) else {}
            return {"message": str(error)}, STATUS_OF[type(error)], headers

    return answer


class ImageResource(Resource):  # type: ignore[misc]
    """The base class of all image resources."""

    method_decorators = (with_error_responses,)

    @property
    def repo(self) -> ImageRepoModel:
        """The images of the current tenant."""
        return ImageRepoModel(db.session, Path(current_app.instance_path, "images"))

    @property
    def memory(self) -> MemoryBudget:
        """The memory budget for decoding images, which all tenants of the process share."""
        memory: MemoryBudget = current_app.extensions[DECODING_MEMORY]
        return memory


class ImageList(ImageResource):
    """The HTTP resource for the list of a tenant's images."""

    def get(self) -> JsonResponse:
        """Return up to `?limit=` images, starting at `?cursor=`, with the newest first."""
        parser = reqparse.RequestParser()
        parser.add_argument("limit", type=_one_of(PAGE_LIMITS), location="args", default=20)
        parser.add_argument("cursor", location="args")
        arguments = parser.parse_args()
        images, cursor = self.repo.page(arguments["limit"], arguments["cursor"])
        return {"images": [image.data() for image in images], "next": cursor}, HTTPStatus.OK

    def post(self) -> JsonResponse:
        """Store an image from the form field `file` or, with the name `?name=`, from the body."""
        quota = FolderQuota(Path(current_app.instance_path), current_app.config["QUOTA_BYTES"])
        size_bytes = request.content_length or 0
        with read_upload(request) as (body, name), quota.reserve(size_bytes):
            image = self.repo.add(body, request.args.get("name", name), self.memory)
        location = url_for(".image", image_id=image.id)
        return image.data(), HTTPStatus.CREATED, {"Location": location}


class ImageItem(ImageResource):
    """The HTTP resource for the description of one image."""

    def get(self, image_id: str) -> JsonResponse:
        """Return the description of the image with the given ID."""
        return self.repo.get(image_id).data(), HTTPStatus.OK

    def delete(self, image_id: str) -> tuple[str, int]:
        """Delete the image with the given ID."""
        self.repo.delete(image_id)
        return "", HTTPStatus.NO_CONTENT


class ImageContent(ImageResource):
    """The HTTP resource for the content of one image."""

    def get(self, image_id: str) -> Response:
        """Send the whole image, a range of its bytes, or 304."""
        with self.repo.content(image_id) as (image, path):
            response = send_file(
                path,
                request.environ,
                mimetype=image.media_type,
                download_name=image.name,
                etag=image.sha256,
                last_modified=image.created,
                response_class=ConditionalResponse,
            )
        return _isolated(response)


class ImageThumbnail(ImageResource):
    """A smaller version of one image, which is created for each request.

    Thumbnails are not stored, because stored files count toward the tenant's quota, and can become
    outdated, orphaned or lost.
    """

    def get(self, image_id: str) -> Response:
        """Send a thumbnail with at most `?size=` pixels on each side, or 304."""
        parser = reqparse.RequestParser()
        parser.add_argument("size", type=_one_of(THUMBNAIL_PX), location="args", default=256)
        size_px = parser.parse_args()["size"]
        with self.repo.content(image_id) as (image, path):
            response = ConditionalResponse()
            response.set_etag(f"{image.sha256}-{size_px}-{THUMBNAIL_VERSION}")
            response.make_conditional(request.environ)
            if response.status_code == HTTPStatus.OK:
                drawn, response.mimetype = draw_thumbnail(path, size_px, self.memory)
                response.set_data(drawn)
        return _isolated(response)


def _one_of(numbers: range) -> Callable[[str], int]:
    """Return a function that parses a number and accepts only the given range."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) not in numbers:
            raise ValueError(f"expected {numbers[0]} to {numbers[-1]}")
        return int(text)

    return parse


def _isolated(response: Response) -> Response:
    """Add headers that forbid shared caching and scripts in a response."""
    response.headers["Cache-Control"] = f"private, max-age={CACHE_S}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    return response
