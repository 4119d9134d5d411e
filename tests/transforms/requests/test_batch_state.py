"""State coders: golden bytes, tolerance of older and newer writers, and Beam's use of them."""

import collections
import decimal
import pickle
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from apache_beam.coders import registry
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.typehints import typehints
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms import coded
from tests.transforms.records.test_coders import REQUEST, REQUESTS
from transforms.accounting.counts import Counts
from transforms.accounting.minute_state import (
    Backlog,
    BacklogCoder,
    CountsCoder,
    MinuteCount,
    MinuteCountCoder,
)
from transforms.records.coders import RequestCoder, UnreadableBytes
from transforms.records.records import Request
from transforms.requests.batch_state import (
    BATCH_FRAME_BYTES,
    REQUEST_FRAME_BYTES,
    EncodedBatch,
    EncodedBatchCoder,
    EncodedRequest,
    EncodedRequestCoder,
    Fill,
    FillCoder,
)

COUNTS = Counts(
    collections.Counter(records=3, results=2, input_tokens=2**40),
    collections.Counter(timeout=1),
    decimal.Decimal("0.000000012"),
)
GOLDEN: list[tuple[Any, str]] = [
    (
        EncodedRequest(b"\x01abc", 258),
        ("0292c40401616263cd0102"),
    ),
    (
        EncodedBatch((b"\x01abc", b"", b"z")),
        ("029193c40401616263c400c4017a"),
    ),
    (
        Fill(2, 30, 400, 1_795_274_809_083),
        ("0294021ecd0190cf000001a1feb79efb"),
    ),
    (
        COUNTS,
        (
            "029383a77265636f72647303a7726573756c747302ac696e7075745f746f6b656e73cf0000010000"
            "00000081a774696d656f757401a6312e32452d38"
        ),
    ),
    (
        MinuteCount(COUNTS, 7, True, 1_795_274_809),
        (
            "02949383a77265636f72647303a7726573756c747302ac696e7075745f746f6b656e73cf00000100"
            "0000000081a774696d656f757401a6312e32452d3807c3ce6b01b839"
        ),
    ),
    (
        Backlog({29_000_001: 2, 29_000_000: -1}),
        ("02919292ce01ba8140ff92ce01ba814102"),
    ),
]
CODERS: dict[type, Any] = {
    EncodedRequest: EncodedRequestCoder,
    EncodedBatch: EncodedBatchCoder,
    Fill: FillCoder,
    Counts: CountsCoder,
    MinuteCount: MinuteCountCoder,
    Backlog: BacklogCoder,
}

NUMBERS = st.integers(0, 2**70)
COUNTERS = st.dictionaries(st.text(max_size=8), st.integers(-5, 2**70)).map(collections.Counter)
COSTS = st.none() | st.decimals(0, 10**9, places=9)
ALL_COUNTS = st.builds(Counts, COUNTERS, COUNTERS, COSTS)
VALUES = (
    st.builds(EncodedRequest, st.binary(), NUMBERS)
    | st.builds(EncodedBatch, st.lists(st.binary(), max_size=5).map(tuple))
    | st.builds(Fill, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
    | ALL_COUNTS
    | st.builds(MinuteCount, ALL_COUNTS, NUMBERS, st.booleans(), NUMBERS)
    | st.builds(Backlog, st.dictionaries(NUMBERS, st.integers(-5, 2**70)))
)


@pytest.mark.parametrize(("value", "golden"), GOLDEN, ids=lambda v: type(v).__name__)
def test_golden_bytes(value: Any, golden: str) -> None:
    """The bytes of version 2 never change, because the state of updated jobs holds them."""
    coder = CODERS[type(value)]()
    assert coder.encode(value).hex() == golden
    assert coder.decode(bytes.fromhex(golden)) == value


@settings(deadline=None)
@given(VALUES)
def test_round_trip(value: Any) -> None:
    """Every value comes back equal, and with equal bytes."""
    coder = CODERS[type(value)]()
    encoded = coder.encode(value)
    assert coder.decode(encoded) == value
    assert coder.encode(coder.decode(encoded)) == encoded


@settings(deadline=None)
@given(st.lists(REQUESTS, max_size=4))
def test_requests_survive_a_batch(requests: list[Request]) -> None:
    """A batch encodes each request once, keeps their order, and adds no more bytes than it says."""
    encoded = tuple(EncodedRequest.of(request).encoded for request in requests)
    coder = EncodedBatchCoder()
    whole = coder.encode(EncodedBatch(encoded))
    assert coder.decode(whole).open() == requests
    most = BATCH_FRAME_BYTES + sum(len(request) + REQUEST_FRAME_BYTES for request in encoded)
    assert len(whole) <= most


def test_an_encoded_request_is_the_request_coder_s_bytes() -> None:
    """State is readable as long as a `Request` is, whatever its estimate."""
    assert EncodedRequest.of(REQUEST) == EncodedRequest(RequestCoder().encode(REQUEST), 12)
    huge = EncodedRequest.of(Request(REQUEST.record, {}, {}, "", 2**70))
    coder = EncodedRequestCoder()
    assert coder.decode(coder.encode(huge)) == huge


@pytest.mark.parametrize(
    ("coder", "fields", "expected"),
    [
        (EncodedRequestCoder, [b"a", 1, "new"], EncodedRequest(b"a", 1)),
        (EncodedBatchCoder, [[b"a", b""], "new"], EncodedBatch((b"a", b""))),
        (FillCoder, [2, 30], Fill(2, 30)),
        (FillCoder, [2, 30, 400, 5, "new"], Fill(2, 30, 400, 5)),
        (CountsCoder, [], Counts()),
        (CountsCoder, [{"records": 1}, {}, None, "new"], Counts(collections.Counter(records=1))),
        (
            MinuteCountCoder,
            [[{"records": 1}]],
            MinuteCount(Counts(collections.Counter(records=1))),
        ),
        (
            MinuteCountCoder,
            [[{}, {}, "1.5", 0], 3, True, 4, "new"],
            MinuteCount(Counts(cost_usd=decimal.Decimal("1.5")), 3, True, 4),
        ),
        (BacklogCoder, [], Backlog()),
        (BacklogCoder, [[[5, 2]], "new"], Backlog({5: 2})),
    ],
)
def test_older_and_newer_releases(coder: Any, fields: list[Any], expected: Any) -> None:
    """Fields that an older release lacks take their defaults; a newer one's are dropped."""
    assert coder().decode(coded(*fields)) == expected


@pytest.mark.parametrize(("value", "golden"), GOLDEN, ids=lambda v: type(v).__name__)
def test_unknown_version(value: Any, golden: str) -> None:
    """Bytes of another version are rejected."""
    kind = type(value).__name__
    with pytest.raises(UnreadableBytes, match=f"^coder version 1 wrote this {kind}, but"):
        CODERS[type(value)]().decode(b"\x01" + bytes.fromhex(golden)[1:])


@settings(deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=5), st.data())
def test_no_cut_batch_is_decoded(requests: list[bytes], data: st.DataObject) -> None:
    """A batch cut at any byte is rejected, whichever request is incomplete."""
    encoded = EncodedBatchCoder().encode(EncodedBatch(tuple(requests)))
    size = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(UnreadableBytes, match=r"^EncodedBatch: "):
        EncodedBatchCoder().decode(encoded[:size])


@pytest.mark.parametrize(("kind", "coder"), CODERS.items())
def test_registry(kind: type, coder: Any) -> None:
    """Beam uses our coders for our types."""
    assert registry.get_coder(kind) == coder()


def test_deterministic_coders() -> None:
    """Coders of counters are not deterministic, since equal counters may differ in order."""
    assert {kind for kind, coder in CODERS.items() if coder().is_deterministic()} == {
        EncodedRequest,
        EncodedBatch,
        Fill,
        Backlog,
    }


def test_a_list_of_requests_is_not_pickled() -> None:
    """Beam encodes ``list[Request]`` with its own framing around our coder."""
    coder = registry.get_coder(typehints.List[Request])
    assert repr(coder) == "ListCoder[RequestCoder]"
    encoded = coder.encode([REQUEST, REQUEST])
    assert encoded.count(RequestCoder().encode(REQUEST)) == 2


_SPECS = """
from apache_beam.runners.pipeline_context import PipelineContext
from transforms.accounting.minute_state import *
from transforms.requests.batch_state import *
for kind in (EncodedRequestCoder, EncodedBatchCoder, FillCoder, CountsCoder, MinuteCountCoder, BacklogCoder):
    print(kind().to_runner_api(PipelineContext()).spec.payload.hex())
"""


def test_coders_are_named_alike_by_every_process() -> None:
    """Coders are pickled into a job's graph by name, so that an update finds the same ones."""
    done = subprocess.run(
        [sys.executable, "-c", _SPECS], capture_output=True, text=True, check=True
    )
    here = [coder().to_runner_api(PipelineContext()).spec.payload for coder in CODERS.values()]
    assert done.stdout.split() == [payload.hex() for payload in here]
    assert all(len(payload) < 250 for payload in here)


def test_counts_are_smaller_than_their_pickle() -> None:
    """Counts, which are sent for each bundle, leave out zeros and are smaller than a pickle."""
    coder = CountsCoder()
    empty = Counts(collections.Counter(records=0), collections.Counter())
    assert msgspec.msgpack.decode(coder.encode(empty)[1:]) == [{}, {}, None]
    assert len(coder.encode(COUNTS)) < len(pickle.dumps(COUNTS)) / 2
