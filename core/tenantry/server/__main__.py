"""`python -P -m tenantry.server`: gunicorn. `tenantry serve` replaces its own process with this."""

from gunicorn.app.wsgiapp import run

from tenantry.python_process import search_current_folder_last

search_current_folder_last()  # gunicorn would put it first
run(prog="gunicorn")
