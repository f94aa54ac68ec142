"""Answers conditional requests and range requests (RFC 9110 §13 and §14).

Each file that Tenantry sends goes through `ConditionalResponse`: static files of tenants, and files
of the endpoints that come with Tenantry. Werkzeug's own evaluation fails for `If-Match: *`, rejects
units other than bytes, and sends a range even if `If-Range` has another date.
"""

import re
from datetime import datetime
from typing import Any

from werkzeug.datastructures import ContentRange, ETags
from werkzeug.exceptions import PreconditionFailed, RequestedRangeNotSatisfiable
from werkzeug.http import http_date, parse_date, parse_etags, unquote_etag
from werkzeug.wrappers import Request, Response

_RANGES = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=(.*)", re.DOTALL)
_RANGE = re.compile(r"([0-9]{0,1000})-([0-9]{0,1000})")  # Python parses up to 4,300 digits


class ConditionalResponse(Response):
    """A response with an ETag or a date, which evaluates the conditions of a request."""

    def make_conditional(
        self,
        request_or_environ: Request | dict[str, Any],
        accept_ranges: bool | str = False,
        complete_length: int | None = None,
    ) -> "ConditionalResponse":
        """Evaluate the conditions of a GET or HEAD request, and then its range.

        The response becomes 304 or 206, or stays as it is. A request for several ranges gets the
        whole content.

        Args:
            request_or_environ: the request.
            accept_ranges: whether the client may ask for a range of bytes.
            complete_length: the size of the whole content in bytes.

        Raises:
            PreconditionFailed: the client wants another version of the content.
            RequestedRangeNotSatisfiable: the content has no byte in the range.
        """
        environ = request_or_environ
        if isinstance(environ, Request):
            environ = environ.environ
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return self
        self.headers.setdefault("Date", http_date())
        if accept_ranges:
            self.accept_ranges = "bytes"
        etag, modified = self.headers.get("ETag"), _whole_seconds(self.last_modified)
        try:
            if _is_unchanged(environ, etag, modified):
                self.status_code = 304
            elif accept_ranges and complete_length and _wants_range(environ, etag, modified):
                self._send_range(environ["HTTP_RANGE"], complete_length)
        except (PreconditionFailed, RequestedRangeNotSatisfiable):
            self.close()  # `close` also closes the file
            raise
        return self

    def _send_range(self, ranges: str, length: int) -> None:
        found = find_range(ranges, length)
        if found is not None:
            start, stop = found
            self.status_code = 206
            self.content_range = ContentRange("bytes", start, stop, length)
            self.content_length = stop - start
            self._wrap_range_response(start, stop - start)


def find_range(ranges: str, length: int) -> tuple[int, int] | None:
    """Return the positions of the first byte of a requested range and of the byte after the range.

    The result is None if the response has the whole content: if the unit is unknown (RFC 9110
    §14.2), or if several ranges are requested.

    Raises:
        RequestedRangeNotSatisfiable: the content has no byte in any range, or a range is invalid.
    """
    parsed = _RANGES.fullmatch(ranges)
    if parsed is None or parsed[1].lower() != "bytes":
        return None
    texts = [text for part in parsed[2].split(",") if (text := part.strip(" \t"))]
    spans = [_span(text, length) for text in texts]
    inside = [(start, stop) for start, stop in spans if start < stop]
    if not inside:
        raise RequestedRangeNotSatisfiable(length)
    return inside[0] if len(inside) == 1 else None


def _span(text: str, length: int) -> tuple[int, int]:
    """Return where a range begins and ends in the content.

    An empty span contains no byte of the content.
    """
    found = _RANGE.fullmatch(text)
    if found is None or found[0] == "-":
        raise RequestedRangeNotSatisfiable(length)
    first, last = found.groups()
    if not first:
        return max(0, length - int(last)), length
    if last and int(last) < int(first):
        raise RequestedRangeNotSatisfiable(length)
    return int(first), min(int(last) + 1, length) if last else length


def _is_unchanged(environ: dict[str, Any], etag: str | None, modified: datetime | None) -> bool:
    """Return whether the client already has the content.

    The order of the checks follows RFC 9110 §13.2.2.

    Raises:
        PreconditionFailed: the client wants another version of the content.
    """
    match = parse_etags(environ.get("HTTP_IF_MATCH"))
    if match:
        if not _is_strong_match(match, etag):
            raise PreconditionFailed
    elif _is_later(modified, parse_date(environ.get("HTTP_IF_UNMODIFIED_SINCE"))):
        raise PreconditionFailed
    none_match = parse_etags(environ.get("HTTP_IF_NONE_MATCH"))
    if none_match:
        name = unquote_etag(etag)[0]
        return none_match.star_tag or (name is not None and none_match.contains_weak(name))
    since = parse_date(environ.get("HTTP_IF_MODIFIED_SINCE"))
    return modified is not None and since is not None and modified <= since


def _wants_range(environ: dict[str, Any], etag: str | None, modified: datetime | None) -> bool:
    """Return whether the client wants a part of this version of the content (RFC 9110 §13.1.5)."""
    if "HTTP_RANGE" not in environ or environ["REQUEST_METHOD"] != "GET":
        return False
    condition = environ.get("HTTP_IF_RANGE", "").strip()
    if not condition:
        return True
    if condition.endswith('"'):
        return _is_strong_match(parse_etags(condition), etag)
    return modified is not None and modified == parse_date(condition)


def _is_strong_match(wanted: ETags, etag: str | None) -> bool:
    name, is_weak = unquote_etag(etag)
    return wanted.star_tag or (name is not None and not is_weak and wanted.is_strong(name))


def _is_later(modified: datetime | None, date: datetime | None) -> bool:
    return modified is not None and date is not None and modified > date


def _whole_seconds(date: datetime | None) -> datetime | None:
    return date and date.replace(microsecond=0)
