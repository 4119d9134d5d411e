"""Flags, values and checks that several adapters have in common."""

from pipeline.options.flag import BOTH, Flag, Place
from pipeline.options.kinds import COUNT, TEXT, text_kind
from pipeline.options.messages import NO_CREDENTIALS
from transforms.records.errors import ConfigurationError

GROUP = "Model"

MODEL: Flag[str | None] = Flag(
    "model",
    GROUP,
    "The model's name; a path for sentence_transformers and vllm, any word for fake.",
    TEXT,
    place=Place(required=BOTH),
)
ENDPOINT: Flag[str | None] = Flag(
    "endpoint",
    GROUP,
    "A base URL (for openai it ends in /v1, and several are separated by commas), or the resource "
    "name of a Vertex AI endpoint.",
    text_kind(
        "URL_OR_RESOURCE",
        "TEXT",
        "^(https?://[^[:space:]]+|projects/[^[:space:]]+)$",
        "https://models.example.com/v1",
    ),
)
EMBEDDING_BATCH_SIZE: Flag[int | None] = Flag(
    "embedding_batch_size",
    GROUP,
    "The most texts to embed in one request. By default as many as the provider takes.",
    COUNT,
)


def check_url(endpoint: str) -> str:
    """The endpoint, which must be a single URL.

    Raises:
      ConfigurationError: It is not.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"--endpoint is {endpoint!r}, but must be a URL that begins with http:// or https://"
        )
    if "," in endpoint:
        raise ConfigurationError(
            f"--endpoint is {endpoint!r}, but only --backend=openai takes several: set one"
        )
    return endpoint


def check_google_credentials(backend: str, base_url: str) -> None:
    """Application Default Credentials exist; plain HTTP needs none, its token is made up.

    Raises:
      ConfigurationError: None are found.
    """
    if not base_url.startswith("https://"):
        return
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    except DefaultCredentialsError:
        raise ConfigurationError(f"--backend {backend}: {NO_CREDENTIALS}") from None
