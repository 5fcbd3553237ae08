"""`python -m kdcli` is the same as `kdcli`."""

from kdcli.cli import main

if __name__ == "__main__":
    main()
