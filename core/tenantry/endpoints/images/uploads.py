"""Reads an uploaded image, and the name that the client gave the image, from a request.

Old clients send names in Latin-1, or whole Windows paths. Werkzeug's parser ignores a form with a
name that is not UTF-8, and removes backslashes from names.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import SpooledTemporaryFile
from typing import IO

from flask import Request
from werkzeug.datastructures import Headers
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import (
    Data,
    Epilogue,
    Event,
    Field,
    File,
    MultipartDecoder,
    NeedData,
)

from .models import InvalidInputError

_NAME = re.compile(r';\s*filename\s*=\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_EXTENDED_NAME = re.compile(r";\s*filename\*", re.IGNORECASE)
_READ_BYTES = 64 * 1024
_MEMORY_BYTES = 500 * 1024
"""Maximum size in bytes of a file that stays in memory. Werkzeug uses the same limit."""


@contextmanager
def read_upload(request: Request) -> Iterator[tuple[IO[bytes], str]]:
    """Yield the uploaded data, and the name from the client, or "".

    The upload is the form field `file`. If the request has no form, the upload is the whole body.

    Raises:
        InvalidInputError: the form does not have exactly one file in the field.
    """
    if request.mimetype != "multipart/form-data":
        yield request.stream, ""
        return
    with ExitStack() as stack:
        if "files" in vars(request):  # the app has already read the form
            files = [(one.stream, _name(one.filename, one.headers))
                     for one in request.files.getlist("file")]  # fmt: skip
        else:
            files = _form_files(request, stack)
        if len(files) != 1:
            text = f"Send one image in the field 'file', or as the body; found {len(files)}."
            raise InvalidInputError(text)
        yield files[0]


class _LenientDecoder(MultipartDecoder):
    """Decodes a form whose headers are in UTF-8 or, if UTF-8 fails, in Latin-1."""

    def _parse_headers(self, data: bytes | bytearray) -> Headers:
        try:
            data.decode()
        except UnicodeDecodeError:
            data = data.decode("latin-1").encode()
        return super()._parse_headers(data)


def _form_files(request: Request, stack: ExitStack) -> list[tuple[IO[bytes], str]]:
    """Return the files in the form field `file`, or nothing if the form is malformed."""
    files: list[tuple[IO[bytes], str]] = []
    file: IO[bytes] | None = None
    try:
        for event in _events(request):
            if isinstance(event, File) and event.name == "file":
                file = SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115 - closed by the stack
                stack.enter_context(file)
                files.append((file, _name(event.filename, event.headers)))
            elif isinstance(event, File | Field):
                file = None
            elif isinstance(event, Data) and file is not None:
                file.write(event.data)
    except ValueError:
        return []
    for file, _ in files:
        file.seek(0)
    return files


def _events(request: Request) -> Iterator[Event]:
    decoder = _LenientDecoder(
        request.mimetype_params.get("boundary", "").encode("ascii"),
        request.max_form_memory_size,
        max_parts=request.max_form_parts,
    )
    event: Event = NeedData()
    while not isinstance(event, Epilogue):
        if isinstance(event, NeedData):
            decoder.receive_data(request.stream.read(_READ_BYTES) or None)
        event = decoder.next_event()
        yield event


def _name(parsed: str | None, headers: Headers) -> str:
    """Return a file name with its backslashes, except those before a quotation mark."""
    disposition = headers.get("Content-Disposition", "")
    if _EXTENDED_NAME.search(disposition):  # the extended name has precedence (RFC 6266 §4.3)
        return parse_options_header(_NAME.sub("", disposition))[1].get("filename", "")
    found = _NAME.search(disposition)
    return (parsed or "") if found is None else found[1].replace('\\"', '"')
