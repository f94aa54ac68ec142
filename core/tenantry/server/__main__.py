"""The command `python -P -m tenantry.server` runs gunicorn, on behalf of `tenantry serve`."""

from gunicorn.app.wsgiapp import run

from tenantry.python_process import leave_out_current_folder

leave_out_current_folder()  # gunicorn would put the current folder first on `sys.path`
run(prog="gunicorn")
