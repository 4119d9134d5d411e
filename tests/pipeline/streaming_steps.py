"""The whole graph of a streaming job as lines; ``python -m tests.pipeline.streaming_steps`` keeps them.

A line per step, output with its coder, state and timer, in two files: rows at least once, and
exactly once.
"""

import re
from pathlib import Path

from pipeline.build import build
from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from tests.transforms.streams import described, streaming_pipeline

HERE = Path(__file__).resolve().parent
JOBS = {
    "streaming_steps.txt": [],
    "streaming_steps_exactly_once.txt": ["--exactly_once=true"],
}
FLAGS = (
    "--runner=DataflowRunner",
    "--project=p",
    "--region=r",
    "--job_name=tickets",
    "--input_subscription=projects/a-project/subscriptions/tickets",
    "--prompt={{ text }}",
    "--backend=fake",
    '--output_schema={"type": "object"}',
    "--output_table=p:d.t",
    "--dead_letter_topic=projects/a-project/topics/dead",
)


def steps(*more: str) -> list[str]:
    """What an update of the job has to find again; without the lines of Beam's own lambdas."""
    root = streaming_pipeline()
    build(root, RunConfig.from_options(parse_flags([*FLAGS, *more])))
    return [re.sub(r"core\.py:\d+", "core.py", line) for line in described(root)]


if __name__ == "__main__":
    for name, more in JOBS.items():
        (HERE / name).write_text("\n".join(steps(*more)) + "\n", encoding="utf-8")
