"""gunicorn's own lines in the form of all others: `logger_class` of `config/gunicorn.conf.py`."""

from typing import Any

from gunicorn.glogging import Logger

from tenantry.observability.logging import configure_logging
from tenantry.settings import read_settings


class GunicornLogger(Logger):  # type: ignore[misc]
    """Hands gunicorn's lines to the root logger; there is no access log."""

    def setup(self, cfg: Any) -> None:
        """Set up logging for this process; again after each reload of gunicorn's configuration."""
        super().setup(cfg)
        settings = read_settings()
        configure_logging(settings.log_format, settings.log_level)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
