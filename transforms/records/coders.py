r"""The coders of the pipeline's types: one versioned form, derived from each dataclass's fields.

Beam would pickle these dataclasses by position, and a field added in a later release would silently
take its neighbour's value in the state of an updated streaming job. `VersionedCoder` writes

.. code-block:: text

    version (1 byte) · MessagePack array of the fields, in the order of their definition

A nested dataclass is a nested array. To add a field, append it to the dataclass with a default;
nothing else is needed. A shorter array, from an older release, is completed with the defaults; the
extra fields of a longer one, from a newer release, are dropped. Never move, remove or retype a
field: such a change needs a new `VERSION`, and running jobs have to be drained.

MessagePack holds bytes and every JSON value except two. Integers beyond 64 bits become an extension
type, and lone surrogates are escaped, as everywhere (`transforms.records.json_values`).
``tuple[float, ...]`` becomes eight bytes per number, little endian.

>>> coder = RecordCoder()
>>> coder.decode(coder.encode(Record("7", {"n": 2**70}))).fields
{'n': 1180591620717411303424}
"""

import collections
import dataclasses
import decimal
import functools
import operator
import struct
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from apache_beam.coders import Coder, registry

from transforms.records import json_values
from transforms.records.records import Answer, DeadLetter, Json, Params, Record, Request

VERSION = 2
_VERSION_BYTE = bytes([VERSION])
_BIG_INTEGER = 1
"""The MessagePack extension type of an integer beyond 64 bits: two's complement, big endian."""


class UnreadableBytes(ValueError):
    """Bytes that this version of the coders did not write."""


@dataclasses.dataclass(frozen=True, slots=True)
class Conversion:
    """How to write a type of field that MessagePack cannot hold directly.

    Attributes:
      write: Converts the field's value to a MessagePack value.
      read: The inverse of `write`.
      canonical: Whether equal values are written as equal bytes.
    """

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]
    canonical: bool = False


def _unchanged(value: Any) -> Any:
    return value


def _doubles(numbers: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(numbers)}d", *numbers)


def _from_doubles(encoded: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(encoded) // 8}d", encoded)


def _pairs(numbers: Mapping[int, int]) -> list[tuple[int, int]]:
    return sorted(numbers.items())


def _nonzero(counter: collections.Counter[str]) -> dict[str, int]:
    return {name: count for name, count in counter.items() if count}


_CONVERSIONS: dict[Any, Conversion] = {
    tuple[bytes, ...]: Conversion(_unchanged, tuple, canonical=True),
    tuple[float, ...]: Conversion(_doubles, _from_doubles),
    Mapping[int, int]: Conversion(_pairs, dict, canonical=True),
    collections.Counter[str]: Conversion(_nonzero, collections.Counter),
    decimal.Decimal: Conversion(str, decimal.Decimal),
    Params | Mapping[str, Json]: Conversion(Params.key_of, Params.from_key),
}
_CANONICAL = (str, bytes, int, bool)


class Layout:
    """One dataclass as an array of its fields; made and cached by `layout_of`.

    Attributes:
      to_array: A value's fields as MessagePack values, in a sequence.
      is_canonical: Whether equal values are encoded as equal bytes.
    """

    to_array: Callable[[Any], Any]

    def __init__(self, kind: type) -> None:
        self._kind = kind
        hints = typing.get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        self._size = len(names)
        self._values: Callable[[Any], Any] = operator.attrgetter(*names)
        if self._size == 1:  # attrgetter would return the field itself
            (name,) = names
            self._values = lambda value: (getattr(value, name),)
        self._writers: list[tuple[int, Callable[[Any], Any]]] = []
        self._readers: list[tuple[int, Callable[[Any], Any]]] = []
        self.is_canonical = True
        for place, name in enumerate(names):
            conversion, canonical = _conversion(hints[name], f"{kind.__name__}.{name}")
            self.is_canonical &= canonical
            if conversion is not None:
                self._writers.append((place, conversion.write))
                self._readers.append((place, conversion.read))
        self.to_array = self._converted if self._writers else self._values

    def _converted(self, value: Any) -> list[Any]:
        values = list(self._values(value))
        for place, write in self._writers:
            field = values[place]
            if field is not None:
                values[place] = write(field)
        return values

    def from_array(self, values: list[Any]) -> Any:
        """The inverse of `to_array`, for arrays of any release."""
        del values[self._size :]
        for place, read in self._readers:
            if place >= len(values):
                break
            field = values[place]
            if field is not None:
                values[place] = read(field)
        return self._kind(*values)

    def encode(self, value: Any) -> bytes:
        """The version and the array, as bytes."""
        values = self.to_array(value)
        try:
            return _VERSION_BYTE + _encode(values)
        except (OverflowError, UnicodeEncodeError, TypeError):
            return _VERSION_BYTE + _encode(_representable(values))

    def decode(self, encoded: bytes) -> Any:
        """The inverse of `encode`.

        Raises:
          UnreadableBytes: Another version of the coders wrote the bytes, or they are damaged.
        """
        name = self._kind.__name__
        if not encoded:
            raise UnreadableBytes(f"{name}: there are no bytes to decode, not even the version")
        version = encoded[0]
        if version != VERSION:
            raise UnreadableBytes(
                f"coder version {version} wrote this {name}, but this release reads version "
                f"{VERSION} only: drain the job with the release that started it, then start a "
                "new job instead of updating it"
            )
        try:
            return self.from_array(_decode(memoryview(encoded)[1:]))
        except (msgspec.DecodeError, ValueError, TypeError, struct.error) as error:
            raise UnreadableBytes(
                f"{name}: the {len(encoded)} bytes are cut or damaged ({error})"
            ) from error


@functools.cache
def layout_of(kind: type) -> Layout:
    """The layout of a dataclass; made once per process.

    Raises:
      TypeError: The coders cannot write one of its fields.
    """
    return Layout(kind)


def _conversion(annotation: Any, name: str) -> tuple[Conversion | None, bool]:
    """A field's conversion, None if it needs none, and whether its bytes are canonical."""
    if conversion := _CONVERSIONS.get(annotation):
        return conversion, conversion.canonical
    origin = typing.get_origin(annotation)
    if origin is typing.Union or origin is types.UnionType:
        inner = [option for option in typing.get_args(annotation) if option is not type(None)]
        if len(inner) == 1:
            return _conversion(inner[0], name)
    elif dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        layout = layout_of(annotation)
        return Conversion(layout.to_array, layout.from_array), layout.is_canonical
    elif annotation in _CANONICAL or origin is typing.Literal:
        return None, True
    elif annotation is float or annotation is Json or _is_object(annotation):
        return None, False  # 0.0 equals -0.0, and equal objects may differ in their order
    raise TypeError(
        f"{name} is a {annotation}, which the coders cannot write: use another type, or add a "
        "Conversion for it"
    )


def _is_object(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Mapping and typing.get_args(annotation)[0] is str


def _representable(value: Any) -> Any:
    """The value in the exact types that MessagePack takes; few values need it."""
    if value is None or type(value) in (bool, float, bytes):
        return value
    if isinstance(value, float):  # NumPy's is a subclass
        return float(value)
    if isinstance(value, str):
        return json_values.clean_text(str(value))
    if isinstance(value, int):
        if -(2**63) <= value < 2**64:
            return int(value)
        size = value.bit_length() // 8 + 1
        return msgspec.msgpack.Ext(_BIG_INTEGER, value.to_bytes(size, "big", signed=True))
    if isinstance(value, Mapping):
        pairs = {}
        for key, item in value.items():
            pairs[json_values.clean_text(str(key))] = _representable(item)
        return pairs
    if isinstance(value, (list, tuple)):
        items = []
        for item in value:
            items.append(_representable(item))  # noqa: PERF401 - half the stack per level
        return items
    return json_values.to_json_value(value)


def _extension(code: int, data: memoryview) -> int:
    if code != _BIG_INTEGER:
        raise UnreadableBytes(f"extension type {code} is not known to this release")
    return int.from_bytes(data, "big", signed=True)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ext_hook=_extension).decode


class VersionedCoder(Coder):
    """A Beam coder over the layout of one dataclass.

    ``class RecordCoder(VersionedCoder, kind=Record)`` is a coder's whole definition, and registers
    it with Beam. Its module and name are in the job graph: an update must find them again.
    """

    kind: type
    _layout: Layout

    def __init_subclass__(cls, kind: type) -> None:
        super().__init_subclass__()
        cls.kind = kind
        cls._layout = layout_of(kind)
        registry.register_coder(kind, cls)

    def encode(self, value: Any) -> bytes:
        """The value as bytes."""
        return self._layout.encode(value)

    def decode(self, encoded: bytes) -> Any:
        """The inverse of `encode`.

        Raises:
          UnreadableBytes: Another version of the coders wrote the bytes, or they are damaged.
        """
        return self._layout.decode(encoded)

    def is_deterministic(self) -> bool:
        """Whether equal values are always encoded as equal bytes, so that they can be keys.

        False for types with a mapping: equal mappings may differ in the order of their keys.
        """
        return self._layout.is_canonical

    def to_type_hint(self) -> type:
        """The dataclass."""
        return self.kind

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class RecordCoder(VersionedCoder, kind=Record):
    """Bytes of a `Record`."""


class RequestCoder(VersionedCoder, kind=Request):
    """Bytes of a `Request`; its params are reduced to their key, see `Params`."""


class AnswerCoder(VersionedCoder, kind=Answer):
    """Bytes of an `Answer`."""


class DeadLetterCoder(VersionedCoder, kind=DeadLetter):
    """Bytes of a `DeadLetter`."""
