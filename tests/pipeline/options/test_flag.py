"""A flag is defined once: its default comes from the field that it configures."""

import dataclasses
import importlib
import pathlib
import pkgutil
import re
import types
import typing
from collections.abc import Iterator

import pytest

import pipeline.backends
import pipeline.options
from pipeline.options.command_line import FLAGS, with_flags
from pipeline.options.flag import Flag
from pipeline.options.kinds import COUNT, TEXT
from pipeline.options.request import ACCEPT_TRUNCATED
from transforms.backends.gemini import GeminiBackend
from transforms.backends.openai import OpenAIBackend
from transforms.backends.vllm.backend import VLLMBackend

ROOT = pathlib.Path(__file__).resolve().parents[3]
VLLMS_OWN = {("transforms/backends/vllm/launch.py", "model")}
"""Arguments of vLLM's server that are called as one of our flags."""


@dataclasses.dataclass(frozen=True)
class _Limits:
    retries: int = 3
    names: tuple[str, ...] = dataclasses.field(default_factory=tuple)
    path: str = dataclasses.field(kw_only=True)


def _modules() -> Iterator[types.ModuleType]:
    for package in (pipeline.options, pipeline.backends):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def test_the_default_is_the_fields() -> None:
    """A flag has the default of the field of its name or the named field, if there is one."""
    assert Flag("retries", "G", "Help.", COUNT, of=_Limits).default == 3
    assert Flag("max_retries", "G", "Help.", COUNT, of=_Limits, field="retries").default_text == "3"
    assert Flag("names", "G", "Help.", TEXT, of=_Limits).default == ()
    assert Flag("path", "G", "Help.", TEXT, of=_Limits).default is None


def test_a_default_cannot_be_written_twice() -> None:
    """A flag of a field cannot repeat its default or name a field that does not exist."""
    with pytest.raises(TypeError, match="--retries: its default is that of _Limits"):
        Flag("retries", "G", "Help.", COUNT, of=_Limits, default=3)
    with pytest.raises(TypeError, match="--tries: _Limits has no field 'tries'"):
        Flag("tries", "G", "Help.", COUNT, of=_Limits)


def test_defaults_that_no_field_has() -> None:
    """Only these flags define their defaults; each backend rejects truncated answers itself."""
    literal = {flag.name for flag in FLAGS if flag.of is None and flag.default is not None}
    assert literal == {
        "accept_truncated",
        "backend",
        "generation_config",
        "request_options",
        "wait",
    }
    for backend in (GeminiBackend, OpenAIBackend, VLLMBackend):
        fields = {field.name: field.default for field in dataclasses.fields(backend)}
        assert fields[ACCEPT_TRUNCATED.name] == ACCEPT_TRUNCATED.default


def test_annotations_say_whether_there_may_be_no_value() -> None:
    """A flag without a default is a ``Flag[int | None]``, one with a default a ``Flag[int]``."""
    seen = set()
    for module in _modules():
        for name, hint in typing.get_type_hints(module).items():
            if typing.get_origin(hint) is not Flag:
                continue
            flag = getattr(module, name)
            (value,) = typing.get_args(hint)
            seen.add(flag)
            if value is not typing.Any and not name.startswith("RECORD_FIELDS"):
                assert (type(None) in typing.get_args(value)) is (flag.default is None), name
    assert seen == set(FLAGS)


def test_messages_of_the_library_name_flags() -> None:
    """Fields in backquotes become flags; no two flags configure fields of one name."""
    assert with_flags("`max_batch_size` is 0; set `format`") == (
        "--max_batch_size is 0; set --input_format"
    )
    assert with_flags("`no_such_field` and max_attempts") == "`no_such_field` and max_attempts"
    fields = [flag.field for flag in FLAGS]
    assert len(fields) == len(set(fields))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "transforms").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_library_knows_no_flags(path: pathlib.Path) -> None:
    """Messages, docstrings and comments of the library name fields, never flags."""
    named = set(re.findall(r"--([a-z][a-z0-9_]+)\b(?!-)", path.read_text("utf-8")))
    ours = {(str(path.relative_to(ROOT)), flag.name) for flag in FLAGS if flag.name in named}
    assert ours - VLLMS_OWN == set()
