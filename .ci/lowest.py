"""Prints the lowest versions that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
requirements = project["dependencies"] + project["optional-dependencies"]["test"]
for requirement in requirements:
    found = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[.*\])?>=([0-9.]+)(?:,.*)?", requirement)
    name, floor = found.groups()
    print(f"{name}=={floor}")
