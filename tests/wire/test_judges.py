"""The wire corpus and the fuzzer detect each kind of wrong answer."""

import fuzz
import pytest
from case import OPEN, Case, Seen, get, ok
from exchange import Outcome, problems
from fuzz import Received, Report, find_problem
from mutation import Mutant, make_mutant
from response_reader import (
    CutResponseError,
    MalformedResponseError,
    Response,
    ResponseReader,
)

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CASE = Case("name", "RFC 9112 §1", (get(b"/a"),), (ok(Seen(path="/a", environ={"HTTP_X": None})),))


def _read(data: bytes) -> Response | None:
    return ResponseReader(Received(data)).next()


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (WHOLE, b"hi"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi"),
        (b"HTTP/1.0 200 OK\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nX-Seen-Method: HEAD\r\nContent-Length: 2\r\n\r\n", b""),
    ],
)
def test_a_response_is_read_to_its_end(data: bytes, body: bytes) -> None:
    """A response ends where its framing says."""
    response = _read(data)

    assert response is not None
    assert body == response.body


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX A: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: a\nX-B: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ],
)
def test_a_malformed_response_is_an_error(data: bytes) -> None:
    """The reader raises an error for bytes that RFC 9112 does not describe."""
    with pytest.raises(MalformedResponseError):
        _read(data)


@pytest.mark.parametrize("data", [WHOLE[:5], WHOLE[:-1]])
def test_a_cut_response_is_an_error(data: bytes) -> None:
    """The reader raises an error for a response that ends too early."""
    with pytest.raises(CutResponseError):
        _read(data)


def _outcome(body: bytes = b'{"PATH_INFO": "/a"}', end: str = OPEN.value) -> Outcome:
    return Outcome([200], [Response(200, 1, {}, body)], end)


def test_a_right_outcome_has_no_problem() -> None:
    """An outcome that equals a correct answer has no problem."""
    assert [] == problems(CASE, _outcome())


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome([200, 200], [Response(200, 1, {}, b'{"PATH_INFO": "/a"}')], OPEN.value),
        _outcome(end="closed"),
        _outcome(end="silent"),
        _outcome(b'{"PATH_INFO": "/b"}'),
        _outcome(b'{"PATH_INFO": "/a", "HTTP_X": ""}'),
    ],
)
def test_a_wrong_outcome_has_a_problem(outcome: Outcome) -> None:
    """A status, end, path or header that differs from the correct answer is a problem."""
    assert [] != problems(CASE, outcome)


# -- the fuzzer -----------------------------------------------------------------------------------

MUTANT = Mutant(1, "n000000001a", "acme", (b"n000000001a n000000001m", b" n000000001b"), False)


def _answer(nonce: str, tenant: str = "acme", admitted: str = "acme", body: str = "") -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\nX-Nonce: {nonce}\r\nX-Tenant: {tenant}\r\nX-Admitted: {admitted}\r\n"
        f"X-Seen-Method: GET\r\nContent-Length: 11\r\n\r\n{body or nonce}"
    ).encode()


FIRST = _answer("n000000001a")


def test_responses_in_order_are_right() -> None:
    """A connection may get fewer responses than nonces, in the order of the nonces."""
    assert "" == find_problem(MUTANT, FIRST + _answer("n000000001b"), Report())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        _answer("n000000001b"),
        _answer("n000000001a", tenant="globex", admitted="globex"),
        FIRST + _answer("n000000002m"),
        FIRST + _answer("n000000001b") + _answer("n000000001m"),
        FIRST + FIRST,
        FIRST + _answer("n000000001m", body="n000000001b"),
        FIRST + _answer("n000000001m", tenant="globex"),
        FIRST + _answer("n000000001m", tenant=""),
        FIRST + b"HTTP/1.1 200",
        FIRST + b"garbage\r\n\r\n",
    ],
)
def test_a_harmful_answer_is_found(data: bytes) -> None:
    """A missing, mixed-up, misrouted or malformed response is a problem."""
    assert "" != find_problem(MUTANT, data, Report())


def test_a_request_that_took_the_turn_of_no_tenant_is_found() -> None:
    """A request that was admitted without a tenant but reached a tenant is a failure."""
    report = Report()

    assert "" != find_problem(MUTANT, _answer("n000000001a", admitted=""), report)
    assert 1 == report.compared


def test_failures_in_the_log_are_found() -> None:
    """A traceback, and a failure of the worker itself, are failures; other lines are not."""
    log = "Traceback (most recent call last):\n[error] worker.loop_failed\n[warning] Invalid\n"

    assert 2 == len(fuzz.logged_failures(log))


def test_a_mutant_depends_only_on_its_number_and_the_seed() -> None:
    """The same seed and number give the same mutant again."""
    assert make_mutant(7, 1234) == make_mutant(7, 1234)
    assert make_mutant(7, 1234) != make_mutant(8, 1234)
