# SPDX-License-Identifier: Apache-2.0
"""The wheel in dist/: its tag, its content, and that it runs where no compiler is."""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

import textpoke

DIST = Path(__file__).parents[2] / "dist"
R_X86_64_RELATIVE = 8
WRITE_AND_EXECUTE = 0x2 | 0x1


@pytest.fixture(scope="module")
def wheel() -> Path:
    wheels = list(DIST.glob("*.whl"))
    assert len(wheels) == 1, f"dist/ must hold one wheel, it holds {wheels}; run make build"
    return wheels[0]


@pytest.fixture(scope="module")
def agent(wheel: Path) -> ELFFile:
    with zipfile.ZipFile(wheel) as archive:
        return ELFFile(io.BytesIO(archive.read("textpoke/_agent.so")))


def test_one_wheel_serves_every_python_from_3_11(wheel: Path) -> None:
    assert wheel.name == f"textpoke-{textpoke.__version__}-cp311-abi3-linux_x86_64.whl"


def test_wheel_holds_module_agent_types_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    dist_info = f"textpoke-{textpoke.__version__}.dist-info"
    assert names >= {
        "textpoke/__init__.py",
        "textpoke/_agent.so",
        "textpoke/_native.abi3.so",
        "textpoke/_native.pyi",
        "textpoke/py.typed",
        f"{dist_info}/licenses/LICENSE",
    }
    assert not [name for name in names if "__pycache__" in name or name.endswith((".c", ".h"))]


def test_version_is_the_same_everywhere() -> None:
    assert importlib.metadata.version("textpoke") == textpoke.__version__


def test_agent_needs_nothing_from_the_target(agent: ELFFile) -> None:
    dynamic = [s for s in agent.iter_sections() if isinstance(s, DynamicSection)]
    assert not [tag for s in dynamic for tag in s.iter_tags("DT_NEEDED")]
    undefined = [
        symbol.name
        for symbol in agent.get_section_by_name(".dynsym").iter_symbols()
        if symbol.name and symbol["st_shndx"] == "SHN_UNDEF"
    ]
    assert not undefined


def test_agent_has_relative_relocations_only(agent: ELFFile) -> None:
    sections = [s for s in agent.iter_sections() if isinstance(s, RelocationSection)]
    kinds = {r["r_info_type"] for s in sections for r in s.iter_relocations()}
    assert kinds <= {R_X86_64_RELATIVE}


def test_agent_has_no_segment_both_writable_and_executable(agent: ELFFile) -> None:
    flags = [s["p_flags"] for s in agent.iter_segments() if s["p_type"] in {"PT_LOAD", "PT_TLS"}]
    assert flags
    assert not [f for f in flags if f & WRITE_AND_EXECUTE == WRITE_AND_EXECUTE]
    assert not [s for s in agent.iter_segments() if s["p_type"] in {"PT_TLS", "PT_INTERP"}]


@pytest.mark.timeout(400)
def test_wheel_runs_in_a_clean_venv_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    environment = {"PATH": str(venv / "bin"), "HOME": str(Path.home())}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python = str(venv / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", str(wheel))
    assert run(str(venv / "bin" / "textpoke"), "--version").strip().endswith(textpoke.__version__)
    run(python, "-W", "error", "-c", "import textpoke, textpoke._native")
