"""Beam's own way: ``python -m benchmarks.dispatch.stock URL RECORDS``, RunInference around Gemini.

`GeminiModelHandler` with its defaults, on the runner and with the threads of our pipeline, with two
exceptions: batches hold one prompt, because it sends a larger batch as one prompt and returns one
answer for all of it; and its client gets an invented token, without Google.
"""

import json
import sys
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.ml.inference.gemini_inference import GeminiModelHandler, generate_from_string
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.dispatch.runs import prompt_of
from pipeline.defaults import LOCAL_THREADS
from pipeline.options.run import LOCAL_RUNNER


class _LocalGemini(GeminiModelHandler):
    url = ""

    def create_client(self) -> Any:
        from google import genai
        from google.genai import types
        from google.oauth2.credentials import Credentials

        return genai.Client(
            vertexai=True,
            project=self.project,
            location=self.location,
            credentials=Credentials(token="none"),
            http_options=types.HttpOptions(base_url=self.url),
        )


def main() -> None:
    url, records = sys.argv[1:]
    handler = _LocalGemini(
        "gemini-2.5-flash",
        generate_from_string,
        project="p",
        location="us-central1",
        max_batch_size=1,
    )
    handler.url = url
    options = PipelineOptions([f"--direct_num_workers={LOCAL_THREADS}"])
    with beam.Pipeline(runner=LOCAL_RUNNER, options=options) as pipeline:
        _ = (
            pipeline
            | "Read" >> beam.io.ReadFromText(records)
            | "Prompt" >> beam.Map(lambda line: prompt_of(json.loads(line)["id"]))
            | "Spread" >> beam.Reshuffle()
            | "Infer" >> RunInference(handler)
            | "Count" >> beam.combiners.Count.Globally()
            | "Print" >> beam.Map(print)
        )


if __name__ == "__main__":
    main()
