"""The host records the client's trace, which requests to other services can continue."""

from contextvars import Context, copy_context
from threading import Thread
from typing import Any

import pytest

from tenantry.http.request_record import RequestRecord, current_request, outgoing_headers

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def traced(environ: dict[str, Any]) -> RequestRecord:
    """Return a record that has read the trace of a request."""
    record = RequestRecord()
    record.read_trace(environ)
    return record


@pytest.mark.parametrize(
    "parent",
    [PARENT, f"00-{TRACE}-b7ad6b7169203331-00", f"01-{TRACE}-b7ad6b7169203331-09-more",
     f"cc-{TRACE}-b7ad6b7169203331-01"],
)  # fmt: skip
def test_a_valid_trace_is_recorded(parent: str) -> None:
    """A valid `traceparent` header is recorded, and reaches the app unchanged."""
    environ = {"HTTP_TRACEPARENT": parent, "HTTP_TRACESTATE": "a=1"}

    record = traced(environ)

    assert (TRACE, parent, "a=1") == (record.trace_id, record.traceparent, record.tracestate)
    assert (parent, "a=1") == (environ["HTTP_TRACEPARENT"], environ["HTTP_TRACESTATE"])


@pytest.mark.parametrize(
    "parent",
    ["", "x", PARENT.upper(), f"{PARENT}-more", f"{PARENT}.", f"ff-{TRACE}-b7ad6b7169203331-01",
     f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{TRACE}-{'0' * 16}-01", f"{PARENT},{PARENT}",
     f"00-{TRACE}-b7ad6b7169203331", f" {PARENT}", f"{PARENT}\n", f"0-{TRACE}-b7ad6b7169203331-01",
     f"01-{TRACE}-b7ad6b7169203331-01x", f"00-{TRACE[:-1]}ü-b7ad6b7169203331-01"],
)  # fmt: skip
def test_an_invalid_trace_is_removed(parent: str) -> None:
    """An invalid `traceparent` is removed together with `tracestate` (W3C Trace Context §3.2.2)."""
    environ: dict[str, Any] = {"HTTP_TRACEPARENT": parent, "HTTP_TRACESTATE": "a=1"}

    record = traced(environ)

    assert ({}, "", "") == (environ, record.trace_id, record.traceparent)


def test_outgoing_headers_name_the_current_request() -> None:
    """Outgoing headers have the request's ID and trace, even in a thread with a copied context."""
    seen = []

    def serve() -> None:
        environ = {"HTTP_TRACEPARENT": PARENT, "HTTP_TRACESTATE": "a=1"}
        for record in (RequestRecord(), traced(environ)):
            record.request_id = "id-1"
            current_request.set(record)
            seen.append(outgoing_headers())
        thread = Thread(target=copy_context().run, args=(lambda: seen.append(outgoing_headers()),))
        thread.start()
        thread.join()

    Context().run(serve)

    both = {"X-Request-ID": "id-1", "traceparent": PARENT, "tracestate": "a=1"}
    assert ([{"X-Request-ID": "id-1"}, both, both], {}) == (seen, outgoing_headers())


def test_one_side_answers_an_overdue_request() -> None:
    """Only the first of the app and the watchdog may answer an overdue request."""
    record = RequestRecord()

    claims = [record.claim_answer(who) for who in ("watchdog", "app", "watchdog")]

    assert [True, False, True] == claims
    assert RequestRecord().claim_answer("app")
