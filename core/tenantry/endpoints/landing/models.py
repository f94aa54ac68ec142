"""The greeting of the landing page."""

INFO = "This is an application of its own: its URLs, its secret key and its data are not shared."


class LandingModel:
    """A greeting for one name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def greeting(self) -> dict[str, str]:
        """Return the name and a sentence about this application."""
        return {"hello": self.name, "info": INFO}
