# SPDX-License-Identifier: Apache-2.0
"""Run the commands of docs/tutorial.md and put what they print into it (as root).

    make tutorial REDIS=/directory/of/redis-server

A block of `console` behind `<!-- run -->` is run, in one bash; `<!-- run, 8 lines -->`
keeps so many of what each command prints. A block behind `<!-- file NAME -->` becomes that file.
All of it happens in namespaces of its own: pids are small, Redis has its usual port to itself, and
what was left running ends with them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(
    r"(<!-- (run|file)(?:, (\d+) lines)?(?: (\S+))? -->\n```\w+\n)(.*?)(```)", re.DOTALL
)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)$", re.MULTILINE)
MARK = "~~~ end of a command ~~~"
INSIDE = "TEXTPOKE_TUTORIAL"
NAMESPACES = ["unshare", "--pid", "--net", "--mount-proc", "--fork", "--kill-child"]
NEEDED = ("textpoke", "redis-server", "redis-benchmark", "sqlite3", "python3", "unshare", "ip")
SETTLE_S = 5  # what was started in the background has said what it has to say by then


class Shell:
    """One bash that all commands share, as a reader's terminal is shared."""

    def __init__(self, directory: str) -> None:
        self.bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": directory, "COLUMNS": "120"},
        )

    def run(self, command: str) -> str:
        """What a command prints, and what those in the background print meanwhile."""
        assert self.bash.stdin
        assert self.bash.stdout
        pause = f"sleep {SETTLE_S}\n" if command.endswith("&") else ""
        self.bash.stdin.write(f"{command}\n{pause}echo; echo '{MARK}'\n")
        self.bash.stdin.flush()
        lines: list[str] = []
        for line in self.bash.stdout:
            if line.strip() == MARK:
                return "".join(lines).rstrip("\n")
            lines.append(line.replace("\t", "        "))
        raise SystemExit(f"bash ended in: {command}")


def fill(page: str, directory: str) -> str:
    """The page with everything run."""
    shell = Shell(directory)

    def block(found: re.Match[str]) -> str:
        head, what, limit, name, body, tail = found.groups()
        if what == "file":
            Path(directory, name).write_text(body, encoding="utf-8")
            return found[0]
        return head + transcript(shell, COMMAND.findall(body), int(limit or 100)) + tail

    with shell.bash:
        return BLOCK.sub(block, page)


def transcript(shell: Shell, commands: list[str], limit: int) -> str:
    shown = []
    for command in commands:
        print(f"$ {command}", file=sys.stderr)
        lines = [line.rstrip() for line in shell.run(command).splitlines()]
        if len(lines) > limit:
            lines[limit:] = ["..."]
        shown += [f"$ {command}", *lines]
    return "\n".join(shown) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a page's commands, refresh their output.")
    parser.add_argument("page", type=Path, metavar="PAGE.md")
    path = parser.parse_args().page
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        print(f"tutorial.py: not on PATH: {', '.join(missing)}", file=sys.stderr)
        return 1
    if INSIDE not in os.environ:
        words = [*NAMESPACES, sys.executable, *sys.argv]
        return subprocess.run(words, check=False, env={**os.environ, INSIDE: "1"}).returncode
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="tutorial-") as directory:
        text = fill(path.read_text(encoding="utf-8"), directory)
    path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
