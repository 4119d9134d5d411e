"""The error tree: the contract's sixteen kinds, and the consequences of each."""

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest

from transforms.records import errors
from transforms.records.causes import Cause
from transforms.records.errors import (
    ERROR_TYPES,
    RECORD_ERRORS,
    BackendUnusable,
    ConfigurationError,
    Interrupted,
    NotAttempted,
    NotReconciled,
    PipelineError,
    RateLimited,
    RecordError,
    RunError,
    Unavailable,
)
from transforms.records.records import Usage

CONTRACT = (
    "parse_error",
    "missing_field",
    "render_error",
    "invalid_request",
    "too_large",
    "rate_limited",
    "unavailable",
    "timeout",
    "forbidden",
    "blocked",
    "empty_output",
    "truncated",
    "schema_violation",
    "write_rejected",
    "not_attempted",
    "internal",
)
RETRYABLE = {"rate_limited", "unavailable", "timeout", "not_attempted"}


def test_error_types() -> None:
    """The error types are those of the contract, in its order."""
    assert ERROR_TYPES == CONTRACT
    assert len(set(RECORD_ERRORS)) == len(RECORD_ERRORS)


def test_every_record_error_is_listed() -> None:
    """Every kind of error in the module is in the list."""
    defined = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, RecordError) and kind is not RecordError
    }
    assert defined == set(RECORD_ERRORS)


@pytest.mark.parametrize("error", RECORD_ERRORS)
def test_retryable(error: type[RecordError]) -> None:
    """Only errors that are unrelated to the record are retryable."""
    assert error.retryable is (error.error_type in RETRYABLE)


@pytest.mark.parametrize("error", RECORD_ERRORS)
def test_a_record_error_never_stops_the_run(error: type[RecordError]) -> None:
    """A record error is neither a `RunError` nor a `ConfigurationError`."""
    assert issubclass(error, PipelineError)
    assert not issubclass(error, (RunError, ConfigurationError))


@pytest.mark.parametrize("error", [BackendUnusable, NotReconciled, Interrupted])
def test_run_errors(error: type[RunError]) -> None:
    """Errors that stop a run are neither a record's errors nor usage errors."""
    assert issubclass(error, RunError)
    assert not issubclass(error, (RecordError, ConfigurationError))


def test_the_module_draws_every_error() -> None:
    """The docstring's tree names each class that the module defines."""
    assert errors.__doc__ is not None
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, PipelineError):
            assert name in errors.__doc__


def test_defaults() -> None:
    """An error needs only a message."""
    error = RecordError("why")
    assert str(error) == "why"
    assert vars(error) == {
        "cause": Cause.REQUEST,
        "retry_after_s": None,
        "finish_reason": None,
        "output": None,
        "usage": None,
        "model_version": None,
        "service_tier": None,
    }


@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_can_be_pickled(
    duplicate: Callable[[RecordError], RecordError],
) -> None:
    """A pickled error keeps every fact that the dispatcher and the dead letter need."""
    error = RateLimited(
        "slow down",
        retry_after_s=2.5,
        finish_reason="OTHER",
        output="text",
        usage=Usage(1),
        model_version="m",
        cause=Cause.ACCOUNT,
    )
    twin = duplicate(error)
    assert type(twin) is RateLimited
    assert str(twin) == "slow down"
    assert vars(twin) == vars(error)


@pytest.mark.parametrize("error", RECORD_ERRORS)
def test_the_usual_cause_of_a_class(error: type[RecordError]) -> None:
    """Classes that a later run may cure are retried in this one, except records never sent."""
    made = error("why")
    assert made.cause is error.cause
    assert made.consequence.retry is (error.retryable and error is not NotAttempted)


def test_an_error_is_frozen() -> None:
    """An error's facts cannot be changed; Python's own attributes can."""
    error = RateLimited("slow down", retry_after_s=2.5)
    with pytest.raises(AttributeError, match=r"^cause cannot be set: errors are immutable"):
        error.cause = Cause.REQUEST
    assert error.cause is Cause.RATE_LIMIT
    error.__cause__ = OSError("reset")


def test_another_error_with_other_facts() -> None:
    """A copy with new facts keeps class, message and other facts, and changes no original."""
    error = Unavailable("503", retry_after_s=2.5, model_version="m")
    other = error.replaced(cause=Cause.OVERLOADED, retry_after_s=None)
    assert (type(other), str(other), other.model_version) == (Unavailable, "503", "m")
    assert (other.cause, other.retry_after_s) == (Cause.OVERLOADED, None)
    assert (error.cause, error.retry_after_s) == (Cause.SERVER_ERROR, 2.5)
