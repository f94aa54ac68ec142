"""The WSGI callable for any server: `tenantry.wsgi:application`."""

from tenantry.python_process import leave_out_current_folder

leave_out_current_folder()  # uWSGI, waitress and gunicorn put the current folder first

from tenantry.files.permissions import create_private_files  # noqa: E402
from tenantry.host import create_host, use_code_snapshot  # noqa: E402

create_private_files()

application = create_host(is_serving=True)
use_code_snapshot(application.settings)
