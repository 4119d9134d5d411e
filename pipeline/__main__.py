"""``python -m pipeline …``, or the console command ``batch-inference …``."""

import sys

from pipeline.main import main


def command() -> int:
    """Runs this process's command line; returns its exit code."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command())
