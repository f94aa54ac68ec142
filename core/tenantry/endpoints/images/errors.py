"""Defines the errors of the endpoint `images`. The text of each error is for the client.

- `UnknownImageError`: no image has the requested ID.
- `InvalidInputError`: a name, a cursor or a form is invalid.
- `WrongTypeError`: the bytes are not an image of a supported type.
- `BrokenImageError`: the image is truncated or damaged, or exceeds a bound.
- `BusyError`: other images use all memory for decoding.
- `MissingContentError`, `InvalidHashError`: faults on the operator's side, not the client's. The
  file of the image is missing, or the row of the image is damaged.
"""

__shared__ = True


class ImageError(Exception):
    """A request for images cannot be served. The text of the error is for the client."""


class UnknownImageError(ImageError):
    """No image has the requested ID."""

    def __init__(self) -> None:
        super().__init__("There is no image with this id.")


class InvalidInputError(ImageError):
    """A name, a cursor or a form in the request is invalid."""


class WrongTypeError(ImageError):
    """The bytes are not an image of a supported type."""


class BrokenImageError(ImageError):
    """The image is truncated, damaged, or too large to decode."""


class BusyError(ImageError):
    """Other images use all memory for decoding."""

    def __init__(self) -> None:
        super().__init__("Too many large images are being decoded. Try again.")


class MissingContentError(ImageError):
    """An image has a database row, but no file."""

    def __init__(self) -> None:
        super().__init__("The content of this image is missing. Tell the operator.")


class InvalidHashError(ImageError):
    """A database row has no valid hash, so Tenantry must not use the hash as a path."""

    def __init__(self) -> None:
        super().__init__("The record of this image is damaged. Tell the operator.")
