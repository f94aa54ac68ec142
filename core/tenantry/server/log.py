"""gunicorn's `logger_class`: writes its lines in the format of all others."""

from typing import Any

from gunicorn.glogging import Logger

from tenantry.observability.logging import configure_logging
from tenantry.settings import read_settings


class GunicornLogger(Logger):  # type: ignore[misc]
    """Passes gunicorn's lines to the root logger. It writes no access log."""

    def setup(self, cfg: Any) -> None:
        """Set up logging in this process, and again after each reload of the configuration."""
        super().setup(cfg)
        settings = read_settings()
        configure_logging(settings.log_format, settings.log_level)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
