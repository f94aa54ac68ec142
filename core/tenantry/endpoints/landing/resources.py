"""Defines the HTTP resource of the landing page."""

from flask_restful import Resource, reqparse

from .models import LandingModel


class LandingPage(Resource):  # type: ignore[misc]
    """The front page of a tenant."""

    def get(self) -> tuple[dict[str, str], int]:
        """Return a greeting of the name in `?name=`."""
        parser = reqparse.RequestParser()
        parser.add_argument("name", type=str, location="args", default="guest")
        arguments = parser.parse_args()
        return LandingModel(arguments["name"]).greeting(), 201
