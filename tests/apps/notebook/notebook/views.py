from flask import Blueprint, redirect, render_template, url_for
from flask_login import current_user, login_required, login_user, logout_user

from .extensions import db
from .forms import LoginForm, NoteForm
from .models import Note, User

bp = Blueprint("views", __name__, cli_group=None)


@bp.route("/", methods=["GET", "POST"])
@login_required
def index():
    form = NoteForm()
    if form.validate_on_submit():
        db.session.add(Note(text=form.text.data, author=current_user))
        db.session.commit()
        return redirect(url_for("views.index"))
    return render_template("index.html", form=form, notes=db.session.scalars(db.select(Note)).all())


@bp.route("/login", methods=["GET", "POST"])
def login():
    form = LoginForm()
    if form.validate_on_submit():
        user = db.session.scalar(db.select(User).filter_by(name=form.name.data))
        if user is not None and user.check_password(form.password.data):
            login_user(user)
            return redirect(url_for("views.index"))
    return render_template("login.html", form=form)


@bp.route("/logout")
def logout():
    logout_user()
    return redirect(url_for("views.login"))


@bp.cli.command("add-user")
def add_user():
    """Add the user ada."""
    user = User(name="ada")
    user.set_password("lovelace")
    db.session.add(user)
    db.session.commit()
