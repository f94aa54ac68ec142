"""Why the image repository refuses something, as a tree; each text is a sentence for the client.

ImageError
├── UnknownImageError     no image has this id
├── BadRequestError       a name or a cursor is none
├── WrongTypeError        the bytes are of no type that is taken
├── BrokenImageError      they begin like an image and are none, or not a whole one
├── BusyError             other pictures take all the memory there is for them
└── MissingContentError   an image's bytes are gone: the operator's trouble, not the client's
"""


class ImageError(Exception):
    """Something that the image repository does not do; its text is for the client."""


class UnknownImageError(ImageError):
    """No image has this id."""

    def __init__(self) -> None:
        super().__init__("There is no image with this id.")


class BadRequestError(ImageError):
    """What the client sent beside the image is malformed."""


class WrongTypeError(ImageError):
    """The bytes are of no type that is taken."""


class BrokenImageError(ImageError):
    """The bytes begin like an image and are none, not a whole one, or one too big to decode."""


class BusyError(ImageError):
    """Other pictures take all the memory that there is for them."""

    def __init__(self) -> None:
        super().__init__("Other large images are being looked at; try again.")


class MissingContentError(ImageError):
    """An image's row is there and its bytes are not."""

    def __init__(self) -> None:
        super().__init__("The bytes of this image are missing; the operator can check for it.")
