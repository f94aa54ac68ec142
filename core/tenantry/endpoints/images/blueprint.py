"""Maps the resources of images to URLs, and adds a command that checks the stored images."""

from flask import Blueprint
from flask_restful import Api

from .commands import check
from .resources import ImageContent, ImageItem, ImageList, ImageThumbnail

images_bp = Blueprint("images", __name__, url_prefix="/images")
images_bp.cli.add_command(check)
images_api = Api(images_bp)

images_api.add_resource(ImageList, "/", endpoint="images")
images_api.add_resource(ImageItem, "/<image_id>", endpoint="image")
images_api.add_resource(ImageContent, "/<image_id>/content", endpoint="content")
images_api.add_resource(ImageThumbnail, "/<image_id>/thumbnail", endpoint="thumbnail")
