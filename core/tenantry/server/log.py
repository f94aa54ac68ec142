"""gunicorn's `logger_class`, which writes gunicorn's lines in the format of the host's lines."""

from typing import Any

from gunicorn.glogging import Logger

from tenantry.observability.logging import configure_logging
from tenantry.settings import read_settings


class GunicornLogger(Logger):  # type: ignore[misc]
    """A logger that passes gunicorn's lines to the root logger and writes no access log."""

    def setup(self, cfg: Any) -> None:
        """Set up logging in this process, at the start and after each reload."""
        super().setup(cfg)
        settings = read_settings()
        configure_logging(settings.log_format, settings.log_level)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
