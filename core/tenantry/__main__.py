"""Starts the command line, as `tenantry` or as `python -m tenantry`.

Importing the commands takes up to a second. The function `main` imports the commands, so that
Ctrl-C prints no traceback during the import.
"""

import sys
from importlib import import_module


def main() -> None:
    """Run the command line."""
    try:
        run = import_module("tenantry.cli").main
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
