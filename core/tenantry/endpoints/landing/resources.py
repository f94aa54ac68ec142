"""The landing page."""

from flask_restful import Resource, reqparse

from .models import LandingModel


class LandingPage(Resource):  # type: ignore[misc]
    """The tenant's front page."""

    def get(self) -> tuple[dict[str, str], int]:
        """Greet the client by `?name=`."""
        parser = reqparse.RequestParser()
        parser.add_argument("name", type=str, location="args", default="guest")
        arguments = parser.parse_args()
        return LandingModel(arguments["name"]).greeting(), 201
