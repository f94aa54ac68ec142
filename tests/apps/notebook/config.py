import os

basedir = os.path.abspath(os.path.dirname(__file__))


class Config:
    SECRET_KEY = os.environ.get("NOTEBOOK_SECRET_KEY") or "hard to guess string"
    SQLALCHEMY_DATABASE_URI = os.environ.get("NOTEBOOK_DATABASE_URL") or (
        "sqlite:///" + os.path.join(basedir, "notebook.db")
    )
    NOTES_PER_PAGE = 10
