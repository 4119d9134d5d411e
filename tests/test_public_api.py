"""The names that other people's pipelines may import."""

import inspect

import transforms

PUBLIC = [
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
    "Capabilities",
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


def test_public_names() -> None:
    """Exactly these, in this order; taking one away breaks somebody's pipeline."""
    assert transforms.__all__ == PUBLIC


def test_each_is_there_and_explains_itself() -> None:
    """Every public name exists, and every class and function has a docstring."""
    for name in PUBLIC:
        thing = getattr(transforms, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name
