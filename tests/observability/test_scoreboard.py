"""The scoreboard shows which requests are in flight in which process, even in a dead process."""

import os
import signal
import threading

from tenantry.observability.scoreboard import CELLS, ROWS, Row, Scoreboard


def _row(scoreboard: Scoreboard) -> Row:
    row = scoreboard.claim_row()
    assert row is not None
    return row


def test_the_number_of_connections_is_not_a_request() -> None:
    """The scoreboard shows a process's number of open connections apart from its requests."""
    scoreboard = Scoreboard()
    rows = [scoreboard.claim_row(), scoreboard.claim_row()]
    for row, count in zip(rows, (70_000, 258), strict=True):
        assert row is not None
        row.show_connections(count)

    assert ({}, 258) == (scoreboard.requests_in_flight(), scoreboard.fewest_connections())


def test_a_request_is_in_flight_from_enter_to_leave() -> None:
    """While a request is in flight, the scoreboard shows the request's tenant and thread."""
    scoreboard = Scoreboard()
    row = _row(scoreboard)

    cell = row.enter("acme")
    shown = [(each.tenant, each.thread_id, each.thread_ident) for each in row.in_flight()]
    counts = [scoreboard.count_requests("acme")]
    row.leave(cell)
    counts.append(scoreboard.count_requests("acme"))

    assert [("acme", threading.get_native_id(), threading.get_ident())] == shown
    assert ([], [1, 0]) == (row.in_flight(), counts)


def test_requests_are_counted_over_all_processes() -> None:
    """The scoreboard counts each tenant's requests in all processes."""
    scoreboard = Scoreboard()
    rows = [_row(scoreboard), _row(scoreboard)]
    for row in rows:
        row.enter("acme")
    rows[1].enter("globex")

    assert {"acme": 2, "globex": 1} == scoreboard.requests_in_flight()
    assert (2, 1) == tuple(map(scoreboard.count_requests, ("acme", "globex")))


def test_a_name_that_begins_another_is_counted_apart() -> None:
    """The scoreboard does not confuse the tenants `acme` and `acme-2`."""
    scoreboard = Scoreboard()
    row = _row(scoreboard)

    row.leave(row.enter("acme-2"))
    row.enter("acme")
    row.enter("acme-2")

    assert {"acme": 1, "acme-2": 1} == scoreboard.requests_in_flight()
    assert 1 == scoreboard.count_requests("acme")


def test_a_build_is_shown_but_not_counted() -> None:
    """The scoreboard shows a build of an app, but does not count the build as a request."""
    scoreboard = Scoreboard()
    row = _row(scoreboard)

    cell = row.enter("acme", is_build=True)
    row.enter("acme")
    shown = sorted((each.tenant, each.is_build) for each in row.in_flight())
    counts = scoreboard.count_requests("acme"), scoreboard.requests_in_flight()
    row.leave(cell)

    assert [("acme", False), ("acme", True)] == shown
    assert (1, {"acme": 1}) == counts
    assert [False] == [each.is_build for each in row.in_flight()]


def test_the_requests_of_a_killed_process_are_known() -> None:
    """After a process is killed with `kill -9`, the scoreboard still shows its requests."""
    row = _row(Scoreboard())
    child = os.fork()
    if not child:
        try:
            row.enter("globex")
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)  # end the child process here, so that it does not run other tests
    status = os.waitpid(child, 0)[1]

    assert signal.SIGKILL == os.WTERMSIG(status)
    assert (["globex"], False) == ([each.tenant for each in row.in_flight()], row.is_stopping)


def test_a_row_is_empty_when_it_is_claimed_again() -> None:
    """If a new process reuses the scoreboard row of a dead process, the row starts empty."""
    scoreboard = Scoreboard()
    row = _row(scoreboard)
    row.enter("acme")
    row.stop()

    row.free()
    again = _row(scoreboard)

    assert ([], False) == (again.in_flight(), again.is_stopping)
    assert 0 == scoreboard.count_requests("acme")


def test_a_full_scoreboard_is_not_an_error() -> None:
    """If the scoreboard is full, it does not show further requests and processes."""
    scoreboard = Scoreboard()
    row = _row(scoreboard)
    cells = [row.enter("acme") for _ in range(CELLS + 1)]
    rows = [scoreboard.claim_row() for _ in range(ROWS)]

    assert (None, None) == (rows[-1], cells[-1])
    assert CELLS == scoreboard.count_requests("acme")


def test_the_longest_name_fits() -> None:
    """The scoreboard has room for tenant names of 63 characters, the maximum."""
    row = _row(Scoreboard())

    row.enter("a" * 63)

    assert ["a" * 63] == [each.tenant for each in row.in_flight()]
