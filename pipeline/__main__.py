"""``python -m pipeline …``."""

import sys

from pipeline.main import main


def command() -> None:
    """The console command ``batch-inference``: the same, where the package is installed."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    command()
