"""The graph of a streaming job as lines; ``python -m tests.pipeline.streaming_steps`` writes them.

Each step, output with its coder, state and timer is a line; one file is for rows written at least
once, the other for exactly once.
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
    """The parts of a job that an update must find again, without those of Beam's own lambdas."""
    root = streaming_pipeline()
    build(root, RunConfig.from_options(parse_flags([*FLAGS, *more])))
    return [re.sub(r"core\.py:\d+", "core.py", line) for line in described(root)]


if __name__ == "__main__":
    for name, more in JOBS.items():
        (HERE / name).write_text("\n".join(steps(*more)) + "\n", encoding="utf-8")
