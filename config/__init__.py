"""What an operator sets: secrets (`secret`), host settings, gunicorn. Imports nothing of `core`.

Tenant files do `from config import secret`, in a process that must start fast: this file
imports the standard library only.
"""

from config.secrets import SecretError, secret

__all__ = ["SecretError", "secret"]
