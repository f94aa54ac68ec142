import os

from flask import Flask, redirect, render_template, request, send_from_directory, session, url_for

app = Flask(__name__)
app.secret_key = "dev"
app.config["UPLOAD_FOLDER"] = os.path.join(app.instance_path, "uploads")
app.config["MAX_CONTENT_LENGTH"] = 1024 * 1024

visits = []


@app.before_request
def count():
    visits.append(request.path)


@app.route("/")
def index():
    return render_template("index.html", name=session.get("name"), visits=len(visits))


@app.post("/login")
def login():
    session["name"] = request.form["name"]
    return redirect(url_for("index"))


@app.post("/upload")
def upload():
    file = request.files["file"]
    os.makedirs(app.config["UPLOAD_FOLDER"], exist_ok=True)
    file.save(os.path.join(app.config["UPLOAD_FOLDER"], os.path.basename(file.filename)))
    return redirect(url_for("download", name=file.filename))


@app.route("/uploads/<name>")
def download(name):
    return send_from_directory(app.config["UPLOAD_FOLDER"], name)


@app.errorhandler(404)
def not_found(error):
    return render_template("missing.html"), 404


@app.cli.command("count")
def count_command():
    """Print the number of uploads."""
    print(len(os.listdir(app.config["UPLOAD_FOLDER"])))


if __name__ == "__main__":
    app.run(debug=True)
