"""Checks that query Pub/Sub before launch; `pipeline.checks.all` runs them."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.checks.runner import CHECK_TIMEOUT_S
from pipeline.config import RunConfig
from pipeline.options.messages import NO_CREDENTIALS
from transforms.records.errors import ConfigurationError
from transforms.sources.pubsub import PubSubSource


def pubsub_checks(config: RunConfig) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks that this configuration needs, each with its subject."""
    topic = config.sinks.dead_letter_topic
    if isinstance(config.source, PubSubSource):
        subscription = config.source.subscription
        check = functools.partial(check_subscription, subscription, topic)
        yield f"--input_subscription {subscription}", check
    if topic is not None and config.preview is None:
        yield f"--dead_letter_topic {topic}", functools.partial(check_topic, topic)


def check_subscription(subscription: str, dead_letter_topic: str | None = None) -> None:
    """The subscription exists, can be read, and is not one of the dead-letter topic.

    Raises:
      ConfigurationError: It does not exist, is detached, or would receive its own dead letters.
    """
    from google.cloud import pubsub_v1

    flag = f"--input_subscription {subscription}"

    def ask() -> Any:
        with pubsub_v1.SubscriberClient() as client:
            return client.get_subscription(
                subscription=subscription, retry=None, timeout=CHECK_TIMEOUT_S
            )

    found = _ask(
        flag,
        f"check the name, or make it with `gcloud pubsub subscriptions create {subscription}`",
        ask,
    )
    if found.detached:
        raise ConfigurationError(
            f"{flag} is detached from its topic and receives no messages: set another"
        )
    if dead_letter_topic is not None and found.topic == dead_letter_topic:
        raise ConfigurationError(
            f"--dead_letter_topic {dead_letter_topic} feeds {flag}: a dead letter would be read, "
            "fail and be published again forever; set another topic"
        )


def check_topic(topic: str) -> None:
    """The topic exists.

    Raises:
      ConfigurationError: It does not exist.
    """
    from google.pubsub_v1 import PublisherClient

    def ask() -> Any:
        with PublisherClient() as client:
            return client.get_topic(topic=topic, retry=None, timeout=CHECK_TIMEOUT_S)

    _ask(
        f"--dead_letter_topic {topic}",
        f"check the name, or make it with `gcloud pubsub topics create {topic}`",
        ask,
    )


def _ask(flag: str, remedy: str, ask: Callable[[], Any]) -> Any:
    """Calls Pub/Sub; a definite "not found" or "invalid" is wrong use, other errors propagate."""
    from google.api_core.exceptions import InvalidArgument, NotFound
    from google.auth.exceptions import DefaultCredentialsError

    try:
        return ask()
    except NotFound:
        raise ConfigurationError(f"{flag} does not exist: {remedy}") from None
    except InvalidArgument as error:
        raise ConfigurationError(f"{flag}: {error.message}: {remedy}") from None
    except DefaultCredentialsError:
        raise ConfigurationError(f"{flag}: {NO_CREDENTIALS}") from None
