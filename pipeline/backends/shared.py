"""Flags, values and checks that several adapters have in common."""

from typing import TYPE_CHECKING, Literal

from pipeline.options.messages import NO_CREDENTIALS
from pipeline.options.option import Option
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.options.command_line import Values

GROUP = "Model"

ENDPOINT = Option(
    "endpoint",
    GROUP,
    "A base URL (ending in /v1 for openai, which takes several, separated by commas), or a "
    "Vertex AI endpoint's resource name.",
    metavar="URL_OR_RESOURCE",
)
GENERATE_API = Option(
    "generate_api",
    GROUP,
    "The API that generates text with openai and vllm: chat, or completions for base models "
    "without a chat template. Chat by default.",
    choices=("chat", "completions"),
)


def task(values: "Values") -> Literal["generate", "embed"]:
    """The value of ``--task``."""
    return "embed" if values.text("task") == "embed" else "generate"


def generate_api(values: "Values") -> Literal["chat", "completions"]:
    """The value of ``--generate_api``."""
    return "completions" if values.text("generate_api") == "completions" else "chat"


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
