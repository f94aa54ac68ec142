"""Maps the landing page to the URL `/`."""

from flask import Blueprint
from flask_restful import Api

from .resources import LandingPage

landing_bp = Blueprint("landing", __name__)
landing_api = Api(landing_bp)

landing_api.add_resource(LandingPage, "/")
