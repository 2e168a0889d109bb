"""`python -m smp` is the `hartbeat` command."""

import sys

from smp.cli import main

if __name__ == "__main__":
    sys.exit(main())
