"""Every log line is one event, and names the tenant and the request."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Any, Literal

import pytest
import structlog
from werkzeug.test import Client

from tenantry.http.environ import REQUEST_ID
from tenantry.middleware.log_context import LogContext
from tenantry.observability.logging import _HostHandler, configure_logging

Logged = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def _same_logging_after() -> Iterator[None]:
    """Restore the process's logging after the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(name="logged")
def _logged(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Return a function that returns the lines on stderr since its last call."""

    def logged() -> list[str]:
        return capsys.readouterr().err.splitlines()

    return logged


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    """Return the fields of each log line. Every line must be JSON."""
    return [json.loads(line) for line in lines]


def host_handlers() -> int:
    """Return the number of the host's handlers on the root logger."""
    return sum(isinstance(handler, _HostHandler) for handler in logging.getLogger().handlers)


def raised(reason: str) -> ValueError:
    """Return an exception whose traceback has a secret in a local variable."""
    key = "a local secret"
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - no other code raises in this block
        int(key)
    return type(caught.value)(reason).with_traceback(caught.tb)


def serve(log: Callable[[], object]) -> None:
    """Run one request of acme that calls `log`."""

    def app(_: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        log()
        start_response("200 OK", [])
        return []

    with structlog.contextvars.bound_contextvars(tenant="", request_id=""):
        Client(LogContext(app, "acme")).get("/", environ_overrides={REQUEST_ID: "id-1"})


@pytest.mark.parametrize(
    "name", ["tenant.acme", "tenantry.routing.mount", "sqlalchemy.engine", "root"]
)
def test_a_line_of_any_logger_names_tenant_and_request(logged: Logged, name: str) -> None:
    """During a request, log lines of all loggers have the tenant's name and the request ID."""
    configure_logging("json", "info")

    serve(lambda: logging.getLogger(name).warning("image.%s", "stored", extra={"size_bytes": 3}))

    [line] = parsed(logged())
    line.pop("timestamp")
    assert {
        "event": "image.stored",
        "level": "warning",
        "logger": name,
        "tenant": "acme",
        "request_id": "id-1",
        "size_bytes": 3,
    } == line


def test_a_json_line_stays_one_line(logged: Logged) -> None:
    """A JSON log line stays one line, even with line breaks, a traceback or odd values."""
    configure_logging("json", "info")
    logger = logging.getLogger("tenant.acme")

    facts = {"thing": object(), "path": "/\x1b[31m"}

    logger.error("a\nb\u2028c", exc_info=raised("the\nreason"), extra=facts)

    [line] = parsed(logged())
    assert ("a\nb\u2028c", "/\x1b[31m") == (line["event"], line["path"])
    assert "Traceback (most recent call last)" in line["exception"]
    assert "ValueError: the\nreason" in line["exception"]


def test_a_console_line_cannot_be_forged(logged: Logged) -> None:
    """In console log lines, control characters in a path or a message are escaped."""
    configure_logging("console", "info")

    logging.getLogger("tenant.acme").info("on %s", "/a\n\x1b[31mb", extra={"path": "/\x9b\x1b[2J"})

    [line] = logged()
    assert "\x1b" not in line
    assert r"on /a\n\x1b[31mb" in line
    assert r"/\x9b\x1b[2J" in line


FORGED = "2026-11-22T20:00:00Z [info     ] request.ended tenant=globex"


def test_an_exception_cannot_forge_a_line(logged: Logged) -> None:
    """In the console log, a traceback is indented, so its text cannot imitate another event."""
    configure_logging("console", "info")
    error = raised(f"no\n{FORGED}\n\x1b[31m\u2028red")

    logging.getLogger("tenant.acme").error("failed", exc_info=error, extra={"stack": FORGED})
    logging.getLogger("tenant.acme").error("failed", extra={"exception": f"a\n{FORGED}"})
    logging.getLogger("tenant.acme").error("failed", extra={"a\nb": [f"\n{FORGED}"], "c": object()})

    lines = logged()
    beginning = [line.split()[3] for line in lines if line.strip("=") and line[:2] != "  "]
    assert (["failed"] * 3, 2) == (beginning, lines.count(f"  {FORGED}"))
    assert not [line for line in lines if "\x1b" in line]
    assert r"  \x1b[31m\u2028red" in lines


def test_extra_does_not_change_facts_of_a_line(logged: Logged) -> None:
    """Extra fields of a log call cannot replace the line's tenant or request ID."""
    configure_logging("json", "info")
    extra = {"tenant": "globex", "request_id": "id-2", "event": "none", "timestamp": 0, "level": 1}

    Context().run(
        lambda: logging.getLogger("tenantry.routing.mount").warning("1", extra={"tenant": "globex"})
    )
    serve(lambda: logging.getLogger("a.library").warning("spoke", extra=extra))

    outside, during = parsed(logged())
    assert "globex" == outside["tenant"]
    assert ("acme", "id-1", "spoke", "warning") == tuple(
        during[key] for key in ("tenant", "request_id", "event", "level")
    )
    assert extra == {key: during[f"extra_{key}"] for key in extra}


def test_a_console_line_has_a_stack(logged: Logged) -> None:
    """A console log line has a traceback in Python's format, without values of local variables."""
    configure_logging("console", "info")

    logging.getLogger("tenant.acme").error("request.failed", exc_info=raised("the reason"))

    lines = logged()
    assert "request.failed" in lines[0]
    assert "  ValueError: the reason" in lines
    assert not [line for line in lines if "a local secret" in line]


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_line_has_no_password_of_a_url(logged: Logged, form: Literal["console", "json"]) -> None:
    """Passwords in URLs are redacted in log messages, fields and exceptions."""
    configure_logging(form, "info")
    url = "redis://app:Hunter2@cache/0 or https://h/x?page=2&api_key=Hunter2#x"

    logging.getLogger("redis").error("no %s", url, exc_info=raised(url), extra={"url": url})

    text = "\n".join(logged())
    masked = "redis://app:********@cache/0 or https://h/x?page=2&api_key=********#x"
    assert (False, True) == ("Hunter2" in text, text.count(masked) >= 3)


@pytest.mark.parametrize(("level", "expected"), [("info", ["info", "error"]), ("error", ["error"])])
def test_the_level_is_the_least_severe_that_is_logged(
    logged: Logged, level: str, expected: list[str]
) -> None:
    """Log events below the configured level are dropped."""
    configure_logging("json", level)
    logger = logging.getLogger("tenant.acme")

    logger.debug("a")
    logger.info("b")
    logger.error("c")

    assert expected == [line["level"] for line in parsed(logged())]


def test_a_second_call_replaces_the_first(logged: Logged) -> None:
    """Setting up logging again replaces the host's handler, so each event is logged once."""
    for form in ("json", "console", "json"):
        configure_logging(form, "info")

    logging.getLogger("tenant.acme").info("once")

    assert (1, ["once"]) == (host_handlers(), [line["event"] for line in parsed(logged())])


def test_other_handlers_stay() -> None:
    """Setting up logging keeps handlers that the server or a test added to the root logger."""
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)

    configure_logging("json", "info")

    assert other in logging.getLogger().handlers
