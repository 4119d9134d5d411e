"""``python -m benchmarks``: every benchmark, one after the other."""

import subprocess
import sys

ALL = (
    "overhead",
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
    """Runs each in a process of its own; stops at the first that fails."""
    for name in ALL:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
