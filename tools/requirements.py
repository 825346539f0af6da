# SPDX-License-Identifier: Apache-2.0
"""Print the requirements of pyproject.toml: build, run and every extra, one per line."""

from __future__ import annotations

import tomllib
from pathlib import Path


def requirements(pyproject: Path) -> list[str]:
    """Return what a developer's environment needs, sorted."""
    data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    found: set[str] = {*data["build-system"]["requires"], *data["project"]["dependencies"]}
    for extra in data["project"]["optional-dependencies"].values():
        found.update(extra)
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(requirements(Path(__file__).parent.parent / "pyproject.toml")))
