"""`python -m partialkd COMMAND ...`: the program `partialkd`, where its own command is not on the PATH."""

from partialkd.commands.console import main

if __name__ == "__main__":
    raise SystemExit(main())
