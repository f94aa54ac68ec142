"""The model of the landing page's greeting."""

INFO = "This is an application of its own: its URLs, its secret key and its data are not shared."


class LandingModel:
    """A greeting of one name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def greeting(self) -> dict[str, str]:
        """Return the greeted name and a sentence about the application."""
        return {"hello": self.name, "info": INFO}
