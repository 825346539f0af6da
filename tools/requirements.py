# SPDX-License-Identifier: Apache-2.0
"""Print requirements of pyproject.toml, one per line: of an extra that is named, or else what a
developer needs (to build, to run, and every extra but those that one command alone needs).
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

_OF_ONE_COMMAND = ("docs", "notebook")


def requirements(pyproject: Path, extra: str = "") -> list[str]:
    """Return what `extra` needs, or a developer's environment, sorted."""
    data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    extras: dict[str, list[str]] = data["project"]["optional-dependencies"]
    if extra:
        return sorted(extras[extra])
    found: set[str] = {*data["build-system"]["requires"], *data["project"]["dependencies"]}
    found.update(*(needed for name, needed in extras.items() if name not in _OF_ONE_COMMAND))
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(requirements(Path(__file__).parent.parent / "pyproject.toml", *sys.argv[1:])))
