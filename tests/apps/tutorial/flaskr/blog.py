from flask import Blueprint, abort, g, redirect, render_template, request, url_for

from .auth import login_required
from .db import get_db

bp = Blueprint("blog", __name__)


@bp.route("/")
def index():
    posts = (
        get_db()
        .execute("SELECT p.*, username FROM post p JOIN user u ON p.author_id = u.id")
        .fetchall()
    )
    return render_template("blog/index.html", posts=posts)


@bp.route("/create", methods=("GET", "POST"))
@login_required
def create():
    if request.method == "POST":
        db = get_db()
        db.execute(
            "INSERT INTO post (title, body, author_id) VALUES (?, ?, ?)",
            (request.form["title"], request.form["body"], g.user["id"]),
        )
        db.commit()
        return redirect(url_for("blog.index"))
    return render_template("blog/create.html")


@bp.route("/<int:id>")
def show(id):
    post = get_db().execute("SELECT * FROM post WHERE id = ?", (id,)).fetchone()
    if post is None:
        abort(404, f"Post id {id} doesn't exist.")
    return render_template("blog/index.html", posts=[post])
