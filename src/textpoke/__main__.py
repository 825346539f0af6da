# SPDX-License-Identifier: Apache-2.0
"""Run the command line as `python -m textpoke`."""

from textpoke.cli import main

raise SystemExit(main())
