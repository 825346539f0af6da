# SPDX-License-Identifier: Apache-2.0
"""Launch a program with all branches of a module counted, and tell what was counted when it waits.

    branch_counted.py MODULE COMMAND...

The program's stdin is ours. Output: JSON, [vaddr, taken, not taken] for each branch.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import textpoke


def is_waiting(pid: int) -> bool:
    """Whether it sleeps, and has not run for a while."""
    stat = Path(f"/proc/{pid}/stat")
    before = stat.read_text().rpartition(")")[2].split()
    time.sleep(1)
    after = stat.read_text().rpartition(")")[2].split()
    return before[0] == after[0] == "S" and before[11:13] == after[11:13]


def main() -> None:
    module, *command = sys.argv[1:]
    target = textpoke.launch(command)
    with target.branches(f"{module}!*") as counts:
        assert not counts.refused
        target.release()
        while not is_waiting(target.pid):
            pass
        rows = zip(counts.branches, counts.counts().tolist(), strict=True)
        json.dump([(branch.vaddr, *count) for branch, count in rows], sys.stderr)
        sys.stderr.flush()
        os.kill(target.pid, signal.SIGKILL)
    os._exit(0)


main()
