# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds these pages (`make docs`)."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tools"))

import reference_pages  # noqa: E402 - tools/ is no package: found by the path above

import textpoke  # noqa: E402 - imports stay sorted behind that one

project = "textpoke"
author = "the textpoke authors"
project_copyright = "the textpoke authors, Apache-2.0"
release = version = textpoke.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# What is shown is pasted into shells: quotes and dashes stay what they are.
smartquotes = False
default_role = "py:obj"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True

html_theme = "furo"
html_title = "textpoke"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False

reference_pages.write(HERE / "generated")
