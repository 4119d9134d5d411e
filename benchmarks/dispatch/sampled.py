"""The pipeline with samples: ``python -m benchmarks.dispatch.sampled SAMPLES [pipeline's flags]``.

Runs ``pipeline.main.main`` in this process with unchanged flags. Twice a second it writes the values
that a terminal would show as JSON lines: ``at_s`` on the system's monotonic clock, and the counts and
gauges of `transforms.accounting.metrics.LIVE`.
"""

import json
import sys
import threading
import time

from pipeline.main import main as run_pipeline
from transforms.accounting.metrics import LIVE

EVERY_S = 0.5


def main() -> None:
    path, *flags = sys.argv[1:]

    def sample() -> None:
        with open(path, "w", encoding="utf-8") as file:
            while True:
                file.write(json.dumps({**LIVE.snapshot(), "at_s": time.monotonic()}) + "\n")
                file.flush()
                time.sleep(EVERY_S)

    threading.Thread(target=sample, daemon=True).start()
    sys.exit(run_pipeline(flags))


if __name__ == "__main__":
    main()
