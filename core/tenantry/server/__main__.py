"""The command `python -P -m tenantry.server` runs gunicorn, on behalf of `tenantry serve`."""

from gunicorn.app.wsgiapp import run

from tenantry.python_process import search_current_folder_last

search_current_folder_last()  # gunicorn would put the current folder first
run(prog="gunicorn")
