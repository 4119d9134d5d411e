"""The pipeline as a whole: values that two of its steps must share."""

from typing import Any

import apache_beam as beam
import pytest

from pipeline import build as build_module
from pipeline.build import build
from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from tests.transforms import pipeline
from tests.transforms.streams import streaming_pipeline
from transforms.inference.infer import Infer


@pytest.mark.parametrize(
    ("source", "root", "streaming"),
    [
        ("--input_files=a.jsonl", pipeline, False),
        ("--input_subscription=projects/a-project/subscriptions/tickets", streaming_pipeline, True),
    ],
)
def test_infer_gets_the_params_of_the_requests(
    source: str, root: Any, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Infer` has the params of the requests; only a stream may meet those of an earlier job."""
    seen: list[Infer] = []

    def infer(**arguments: Any) -> beam.PTransform:
        seen.append(Infer(**arguments))
        return seen[-1]

    monkeypatch.setattr(build_module, "Infer", infer)
    flags = (source, "--prompt={{ text }}", "--backend=fake", "--output_path=out")
    config = RunConfig.from_options(parse_flags((*flags, "--temperature=0.5")))
    build(root(), config)
    (step,) = seen
    assert dict(step.params) == {"generation_config": {"temperature": 0.5}}
    assert step.params is config.request.params
    assert step.allow_earlier_params is streaming
