"""``python -m benchmarks``: every benchmark, one after the other."""

import subprocess
import sys

ALL = (
    "overhead",
    "coders",
    "embeddings",
    "remote_embeddings",
    "client_cost",
    "real_input",
    "batching",
    "storage_write",
    "streaming",
    "launch",
    "dispatch",
    "soak",
)


def main() -> None:
    """Runs each benchmark in its own process; stops at the first failure."""
    for name in ALL:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
