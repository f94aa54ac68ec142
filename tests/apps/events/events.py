import json
import queue

from flask import Flask, Response, request, stream_with_context

app = Flask(__name__)


class Announcer:
    def __init__(self):
        self.listeners = []

    def listen(self):
        self.listeners.append(queue.Queue(maxsize=5))
        return self.listeners[-1]

    def announce(self, message):
        for listener in list(self.listeners):
            listener.put_nowait(message)


announcer = Announcer()


@app.route("/")
def index():
    return {"listeners": len(announcer.listeners)}


@app.post("/announce")
def announce():
    announcer.announce(f"data: {json.dumps(request.get_json())}\n\n")
    return "", 204


@app.route("/listen")
def listen():
    messages = announcer.listen()

    @stream_with_context
    def stream():
        yield ": ready\n\n"
        while True:
            yield messages.get()
            if request.args.get("once"):
                return

    return Response(stream(), mimetype="text/event-stream")
