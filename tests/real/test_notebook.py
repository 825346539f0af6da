# SPDX-License-Identifier: Apache-2.0
"""The notebook of examples/, run headless: C functions below the lines of Python."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def jupyter():
    tool = [sys.executable, str(ROOT / "tools/requirements.py"), "notebook"]
    wanted = subprocess.check_output(tool, text=True).split("\n")
    pip = [sys.executable, "-m", "pip", "install", "-qq", *filter(None, wanted)]
    subprocess.run(pip, check=True)
    return [sys.executable, "-m", "jupyter", "nbconvert"]


def tables(notebook: dict) -> dict[str, list[list[str]]]:
    """By the first line of the cell, the rows of the table that it shows."""
    found = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            text = "".join(output.get("data", {}).get("text/html", ""))
            if "native function" in text:
                rows = re.findall(r"<tr>(<td.*?)</tr>", text)
                found["".join(cell["source"]).split("\n")[0]] = [
                    [html.unescape(re.sub("<[^>]*>", "", column)) for column in row.split("</td>")]
                    for row in rows
                ]
    return found


def test_the_notebook_shows_c_functions_below_python_lines(jupyter, tmp_path):
    output = tmp_path / "done.ipynb"
    to = ["--output", output.name, "--output-dir", tmp_path]
    words = [*jupyter, "--to", "notebook", "--execute", ROOT / "examples/lines.ipynb", *to]
    subprocess.run(words, check=True, timeout=300)
    notebook = json.loads(output.read_text("utf-8"))
    errors = [
        o for c in notebook["cells"] for o in c.get("outputs", ()) if o["output_type"] == "error"
    ]
    assert errors == []
    found = tables(notebook)
    numpy, zstd = (
        found["%%textpoke -m numpy._core -o numpy_calls"],
        found["%%textpoke -m zstandard -o zstd_calls"],
    )
    codes = {row[1] for row in numpy}
    assert "c = np.cumsum(b)" in codes
    assert any("sort" in row[2].lower() and "sort" in row[1] for row in numpy)
    assert any("ompress" in row[2] and "ZstdCompressor" in row[1] for row in zstd)
