"""The cases of the wire corpus, one module for each topic. Each module has a tuple `CASES`."""

from case import Case

from cases import (
    chunks,
    connections,
    encodings,
    expectations,
    fields,
    hosts,
    lengths,
    proxy_lines,
    request_lines,
    responses,
    sizes,
    targets,
    unread,
)

_TOPICS = (
    *(targets, request_lines, fields, hosts, lengths, chunks, encodings, unread),
    *(connections, expectations, responses, sizes, proxy_lines),
)

CASES: tuple[Case, ...] = tuple(case for topic in _TOPICS for case in topic.CASES)
"""All cases, in the order of their topics."""
