"""Provides the entry point of `kdcli`, and of `python -m kdcli`."""

from __future__ import annotations

import os
import sys
from typing import Any


def main() -> None:
    """Run the command line. A request to complete a line is answered without the modules that the commands need."""
    if sys.argv[1:2] == ["completion"] and sys.argv[3:4] == ["--line"] and len(sys.argv) == 5:
        from kdcli.launch.completion import SCRIPTS, complete

        if sys.argv[2] in SCRIPTS:
            sys.exit(complete(sys.argv[2], sys.argv[4], _command_tree))
    from kdcli.cli import main as run

    run()


def _command_tree() -> Any:
    """Return the command of the whole program."""
    from typer.main import get_command

    from kdcli.cli import app

    return get_command(app)


if __name__ == "__main__":
    # -m puts the working directory before everything: a numpy.py that lies there would be imported
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
        if root not in sys.path:
            sys.path.append(root)
    main()
