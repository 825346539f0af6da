# SPDX-License-Identifier: Apache-2.0
"""What every bench shares: the machine, C helpers, medians, JSON and plain tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from targets.many import BUILD, KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HERE = Path(__file__).resolve().parent


def parser(text: str, name: str) -> argparse.ArgumentParser:
    """A parser with the options of every bench; `text` says what is measured and how."""
    made = argparse.ArgumentParser(
        description=textwrap.dedent(text).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="few repetitions: does it work at all?")
    default = BUILD / f"{name}.json"
    made.add_argument(
        "--json", type=Path, default=default, metavar="PATH", help=f"default: {default}"
    )
    return made


def add_matrix(to: argparse.ArgumentParser, sites: list[int], threads: list[int]) -> None:
    """Options that choose the programs to measure."""

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    def add(name: str, kind: Callable[[str], object], default: Sequence[object], what: str) -> None:
        shown = ",".join(map(str, default))
        text = f"{what} (default: {shown})"
        to.add_argument(name, type=kind, default=default, metavar=name[2].upper(), help=text)

    add("--sites", numbers, sites, "numbers of functions, such as 1,1000")
    add("--threads", numbers, threads, "numbers of hot threads")
    add("--kinds", lambda text: text.split(","), ["nop-run", "nop5"], f"of {', '.join(KINDS)}")


def machine() -> dict[str, object]:
    """The processor, the kernel, the cores, and how busy they are."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def say_machine(facts: dict[str, object]) -> None:
    """Print the machine in one line."""
    print(
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, "
        f"Python {facts['python']}, load {facts['load']} at the start"
    )


def build_helper(name: str) -> Path:
    """Compile bench/NAME.c, unless that has been done."""
    source, program = HERE / f"{name}.c", BUILD / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = f"{program}.{os.getpid()}"
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", str(source), "-o", fresh], check=True)
        os.replace(fresh, program)
    return program


def rdtsc_ns() -> float:
    """What one rdtsc costs here, in nanoseconds."""
    return float(subprocess.check_output([build_helper("rdtsc")], text=True))


def median(values: Iterable[float]) -> float:
    """The median; 0.0 of nothing."""
    kept = list(values)
    return statistics.median(kept) if kept else 0.0


def percentile(values: Iterable[float], percent: int) -> float:
    """The smallest value that `percent` of all do not exceed; 0.0 of nothing."""
    kept = sorted(values)
    return kept[max(0, -(-len(kept) * percent // 100) - 1)] if kept else 0.0


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text columns: words to the left, numbers to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [not any(cell[:1].isalpha() for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = zip(cells, widths, right, strict=True)
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in padded).rstrip()

    return "\n".join(map(line, (head, *rows)))


def figure(value: float | None) -> str:
    """Three digits that count; "-" for None."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that the project has promised, and what was measured."""

    name: str
    value: float | None
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """None when it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def cells(self) -> list[str]:
        """The row of a table."""
        aim = f"{'at least' if self.at_least else 'at most'} {self.limit:,g}"
        verdict = {True: "met", False: "MISSED", None: "not measured"}[self.met]
        return [self.name, figure(self.value), aim, self.unit, verdict]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "goal": self.name,
            "value": self.value,
            "limit": self.limit,
            "at_least": self.at_least,
            "unit": self.unit,
            "met": self.met,
        }


def say_goals(goals: Sequence[Goal]) -> None:
    """Print what was promised and what was measured."""
    print("\n" + table(("goal", "measured", "aim", "unit", ""), [g.cells() for g in goals]))


def write_json(path: Path, data: dict[str, object]) -> None:
    """Write the results and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"\n{path}")
