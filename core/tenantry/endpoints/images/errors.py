"""Defines the errors of the endpoint `images`. The text of each error is for the client.

ImageError ├── UnknownImageError     no image has the requested id ├── BadRequestError       a name
or a cursor is invalid ├── WrongTypeError        the bytes are not an image of a supported type ├──
BrokenImageError      the image is truncated, damaged, or too large to decode ├── BusyError other
images use all memory for decoding └── MissingContentError   the image's file is gone: a fault of
the operator, not of the client
"""


class ImageError(Exception):
    """A request for images cannot be served. The text of the error is for the client."""


class UnknownImageError(ImageError):
    """No image has the requested ID."""

    def __init__(self) -> None:
        super().__init__("There is no image with this id.")


class BadRequestError(ImageError):
    """A name or a cursor in the request is invalid."""


class WrongTypeError(ImageError):
    """The bytes are not an image of a supported type."""


class BrokenImageError(ImageError):
    """The bytes begin like an image that is truncated, damaged, or too large to decode."""


class BusyError(ImageError):
    """Other images use all memory for decoding."""

    def __init__(self) -> None:
        super().__init__("Too many large images are being decoded. Try again.")


class MissingContentError(ImageError):
    """An image has a database row, but no file."""

    def __init__(self) -> None:
        super().__init__("The content of this image is missing. Tell the operator.")
