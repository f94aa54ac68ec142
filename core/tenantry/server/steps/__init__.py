"""The steps of a connection, from the first byte of a request to the last byte of its response.

    `head` arrives → head checks → 100 Continue → `body` arrives → `turn` → `response`

A request has no thread of its own until it runs. Each step runs on the leader's thread, does not
wait, and calls the next step through `HttpProtocol`, which assembles the steps. `limits` ends
connections that exceed a time limit.
"""
