from flask import Flask

from config import Config

from .extensions import csrf, db, login_manager, migrate


def create_app(config_class=Config):
    app = Flask(__name__)
    app.config.from_object(config_class)

    db.init_app(app)
    migrate.init_app(app, db)
    login_manager.init_app(app)
    csrf.init_app(app)

    from . import models, views

    app.register_blueprint(views.bp)

    @app.shell_context_processor
    def shell_context():
        return {"db": db, "User": models.User, "Note": models.Note}

    return app
