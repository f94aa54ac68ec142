"""The board: what is in flight in which process, readable when that process is dead."""

import os
import signal
import threading

from tenantry.observability.scoreboard import CELLS, ROWS, Row, Scoreboard, tag

ACME, GLOBEX = tag("acme"), tag("globex")


def _row(board: Scoreboard) -> Row:
    row = board.claim()
    assert row is not None
    return row


def test_a_request_is_on_the_board_from_enter_to_leave() -> None:
    """Its tenant, its thread, and how many the tenant has in flight."""
    board = Scoreboard()
    row = _row(board)

    cell = row.enter(ACME)
    during = [(one.tenant, one.thread_id) for one in row.in_flight()], board.count(ACME)
    row.leave(cell)

    assert ([("acme", threading.get_native_id())], 1) == during
    assert ([], 0) == (row.in_flight(), board.count(ACME))


def test_requests_are_counted_over_all_processes() -> None:
    """Each tenant's own, whichever row they are in."""
    board = Scoreboard()
    rows = [_row(board), _row(board)]
    for row in rows:
        row.enter(ACME)
    rows[1].enter(GLOBEX)

    assert (2, 1) == (board.count(ACME), board.count(GLOBEX))
    assert {"acme": 2, "globex": 1} == board.in_flight()


def test_a_build_is_shown_and_takes_no_slot() -> None:
    """Beside a request of the same tenant."""
    board = Scoreboard()
    row = _row(board)

    cell = row.enter(ACME, is_build=True)
    row.enter(ACME)
    during = sorted((one.tenant, one.is_build) for one in row.in_flight()), board.count(ACME)
    row.leave(cell)

    assert ([("acme", False), ("acme", True)], 1) == during
    assert {"acme": 1} == board.in_flight()
    assert [False] == [one.is_build for one in row.in_flight()]


def test_what_a_killed_process_had_in_flight_is_known() -> None:
    """The memory is shared: `kill -9` takes nothing from it."""
    board = Scoreboard()
    row = _row(board)
    child = os.fork()
    if not child:
        row.enter(GLOBEX)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)

    assert (["globex"], False) == ([one.tenant for one in row.in_flight()], row.is_stopping)


def test_a_freed_row_is_claimed_empty() -> None:
    """Whoever gets the row of a dead process does not get its requests."""
    board = Scoreboard()
    row = _row(board)
    row.enter(ACME)
    row.stop()

    row.free()
    again = _row(board)

    assert ([], False, 0) == (again.in_flight(), again.is_stopping, board.count(ACME))


def test_processes_that_serve_are_counted() -> None:
    """Not those that are about to stop, nor those that are gone."""
    board = Scoreboard()
    stopping, gone, _ = _row(board), _row(board), _row(board)
    stopping.stop()
    gone.free()

    assert 1 == board.processes()


def test_more_than_the_board_can_show_are_served_unseen() -> None:
    """Neither a full row nor a full board is an error."""
    board = Scoreboard()
    row = _row(board)
    cells = [row.enter(ACME) for _ in range(CELLS + 1)]
    rows = [board.claim() for _ in range(ROWS)]

    assert (None, None) == (rows[-1], cells[-1])
    assert CELLS == board.count(ACME)


def test_the_longest_name_fits() -> None:
    """63 characters, as the contract allows."""
    row = _row(Scoreboard())

    row.enter(tag("a" * 63))

    assert ["a" * 63] == [one.tenant for one in row.in_flight()]
