"""The nginx in front of the sides that run a process for each tenant."""

import os

from service import Service

CONFIGURATION = """\
daemon off;
pid nginx.pid;
error_log log/nginx-error.log warn;
worker_processes 2;
{user}
events {{ worker_connections 4096; }}
http {{
    access_log off;
    {temporary}
    {top}
    server {{
        listen {bind};
        {locations}
    }}
}}
"""

UPSTREAMS = ("include nginx/*.upstream;", "include nginx/*.location;")
"""The lines of the configuration, outside and inside `server`, for one gunicorn per tenant."""

VASSALS = (
    "",
    """\
location ~ ^/(?<tenant>[a-z0-9]+)(?<rest>/.*)$ {
            uwsgi_param QUERY_STRING $query_string;
            uwsgi_param REQUEST_METHOD $request_method;
            uwsgi_param CONTENT_TYPE $content_type;
            uwsgi_param CONTENT_LENGTH $content_length;
            uwsgi_param REQUEST_URI $request_uri;
            uwsgi_param SCRIPT_NAME /$tenant;
            uwsgi_param PATH_INFO $rest;
            uwsgi_param SERVER_PROTOCOL $server_protocol;
            uwsgi_param SERVER_NAME $server_name;
            uwsgi_param SERVER_PORT $server_port;
            uwsgi_param REMOTE_ADDR $remote_addr;
            uwsgi_pass unix:run/$tenant.sock;
        }""",
)
"""The lines of the configuration, outside and inside `server`, for the Emperor. The path of a
vassal's socket contains the tenant's name, so nginx needs no reload."""


def start(service: Service, lines: tuple[str, str]) -> None:
    """Start nginx for the service's port."""
    folder = service.folder
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    text = CONFIGURATION.format(
        # As root, nginx's workers change to a user that cannot read the benchmark's sockets.
        user="user root;" if os.geteuid() == 0 else "",
        temporary=" ".join(f"{name}_temp_path nginx/{name};" for name in names),
        top=lines[0],
        bind=service.bind,
        locations=lines[1].replace("unix:run/", f"unix:{folder}/run/"),
    )
    (folder / "nginx.conf").write_text(text)
    command = ("nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "stderr")
    service.run(*command, key="nginx")


def add_upstream(service: Service, name: str) -> None:
    """Write the configuration of one tenant's gunicorn, with connections that nginx keeps."""
    folder = service.folder
    (folder / "nginx" / f"{name}.upstream").write_text(
        f"upstream {name} {{ server unix:{folder}/run/{name}.sock; keepalive 16; }}\n"
    )
    (folder / "nginx" / f"{name}.location").write_text(
        f"location /{name}/ {{ proxy_pass http://{name}/; proxy_http_version 1.1; "
        'proxy_set_header Connection ""; proxy_set_header Host $host; }\n'
    )
