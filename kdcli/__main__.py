"""`python -m kdcli` is the same as `kdcli`."""

from __future__ import annotations

if __name__ == "__main__":
    import os
    import sys

    # -m puts the working directory before everything: a numpy.py that lies there would be imported
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
        if root not in sys.path:
            sys.path.append(root)
    from kdcli.cli import main

    main()
