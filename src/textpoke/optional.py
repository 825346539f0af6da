# SPDX-License-Identifier: Apache-2.0
"""Libraries that only some of textpoke needs: imported when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from textpoke._errors import MissingLibrary

if TYPE_CHECKING:
    from types import ModuleType


def needed(package: str, extra: str) -> ModuleType:
    """Import a library that `extra` of textpoke brings. Raises MissingLibrary."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingLibrary(package.partition(".")[0], extra) from None
