"""The library: each transform can be used on its own in any Beam pipeline.

Importing it registers the coders of its types. Everything below is public; the rest may change.

Example::

    records, unread, counted = pipeline | ReadRecords(source=FileSource(pattern="tickets.jsonl"))
    requests, unrendered = records | RenderRequests(spec=RequestSpec(prompt="Classify: {{ body }}"))
    batches = requests | BatchRequests()
    answered, unserved = batches | Infer(backend=FakeBackend())
"""

from typing import TYPE_CHECKING, Any

from transforms.accounting.counts import CountRecords, Counts
from transforms.accounting.minute_counts import CountReadMinutes, CountsByMinute, MinuteCounts
from transforms.accounting.minute_summary import MINUTE_COLUMNS, SummariseMinutes
from transforms.accounting.reconcile import SummarySpec, WriteRunSummary
from transforms.accounting.sink_report import SinkReport
from transforms.backends.base import Backend, BatchClient, CallLimits, Capabilities, Client
from transforms.backends.fake import FakeBackend
from transforms.backends.gemini import GeminiBackend
from transforms.backends.openai import OpenAIBackend
from transforms.backends.sentence_transformers import SentenceTransformersBackend
from transforms.backends.vertex_endpoint import VertexEndpointBackend
from transforms.backends.vllm.backend import VLLMBackend
from transforms.clients.bigquery import TableName, TableSpec
from transforms.dispatch.dispatcher import DispatchLimits
from transforms.inference.infer import Infer
from transforms.records import coders as _coders  # noqa: F401 - registers the coders
from transforms.records.causes import Cause
from transforms.records.errors import (
    BackendUnusable,
    ConfigurationError,
    NotReconciled,
    PipelineError,
    RecordError,
    RunError,
)
from transforms.records.media import MediaField
from transforms.records.records import (
    Answer,
    Completion,
    DeadLetter,
    Params,
    Record,
    Request,
    Usage,
)
from transforms.requests.batch import BatchLimits, BatchRequests
from transforms.requests.order import OrderByPrefix
from transforms.requests.render import RenderRequests, RequestSpec
from transforms.results.prices import TokenPrices
from transforms.results.rows import DEAD_LETTER_COLUMNS, RESULT_COLUMNS, SUMMARY_COLUMNS, RunInfo
from transforms.results.validate import ValidateOutputs
from transforms.sinks.base import EncodedRow, RejectedRow, Rejection, Sink, Written
from transforms.sinks.bigquery.append import AppendRows, Delivery
from transforms.sinks.bigquery.insert import InsertRows
from transforms.sinks.bigquery.load import LoadRows
from transforms.sinks.bigquery.run_table import RunTable
from transforms.sinks.files import WriteFiles
from transforms.sinks.pubsub import PublishDeadLetters
from transforms.sinks.write import WriteDeadLetters, WriteResults, shorten_dead_letter
from transforms.sources.base import IdRule, ReadRecords
from transforms.sources.bigquery import QuerySource, ReadRows, TableSource
from transforms.sources.dead_letters import DeadLetterSource, ReadDeadLetters
from transforms.sources.files import FileSource, ReadFiles
from transforms.sources.pubsub import PubSubSource, ReadMessages

if TYPE_CHECKING:
    from transforms.inference.handler import InferenceHandler

__all__ = [
    "DEAD_LETTER_COLUMNS",
    "MINUTE_COLUMNS",
    "RESULT_COLUMNS",
    "SUMMARY_COLUMNS",
    "Answer",
    "AppendRows",
    "Backend",
    "BackendUnusable",
    "BatchClient",
    "BatchLimits",
    "BatchRequests",
    "CallLimits",
    "Capabilities",
    "Cause",
    "Client",
    "Completion",
    "ConfigurationError",
    "CountReadMinutes",
    "CountRecords",
    "Counts",
    "CountsByMinute",
    "DeadLetter",
    "DeadLetterSource",
    "Delivery",
    "DispatchLimits",
    "EncodedRow",
    "FakeBackend",
    "FileSource",
    "GeminiBackend",
    "IdRule",
    "Infer",
    "InferenceHandler",
    "InsertRows",
    "LoadRows",
    "MediaField",
    "MinuteCounts",
    "NotReconciled",
    "OpenAIBackend",
    "OrderByPrefix",
    "Params",
    "PipelineError",
    "PubSubSource",
    "PublishDeadLetters",
    "QuerySource",
    "ReadDeadLetters",
    "ReadFiles",
    "ReadMessages",
    "ReadRecords",
    "ReadRows",
    "Record",
    "RecordError",
    "RejectedRow",
    "Rejection",
    "RenderRequests",
    "Request",
    "RequestSpec",
    "RunError",
    "RunInfo",
    "RunTable",
    "SentenceTransformersBackend",
    "Sink",
    "SinkReport",
    "SummariseMinutes",
    "SummarySpec",
    "TableName",
    "TableSource",
    "TableSpec",
    "TokenPrices",
    "Usage",
    "VLLMBackend",
    "ValidateOutputs",
    "VertexEndpointBackend",
    "WriteDeadLetters",
    "WriteFiles",
    "WriteResults",
    "WriteRunSummary",
    "Written",
    "shorten_dead_letter",
]


def __getattr__(name: str) -> Any:
    """Loads `InferenceHandler` on first use: see its module."""
    if name == "InferenceHandler":
        from transforms.inference.handler import InferenceHandler

        return InferenceHandler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
