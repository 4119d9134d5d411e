"""State coders: golden bytes, tolerance of older and newer writers, and Beam's use of them."""

import collections
import decimal
import pickle
import subprocess
import sys
from typing import Any

import pytest
from apache_beam.coders import registry
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.typehints import typehints
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.records.test_coders import REQUEST, REQUESTS
from transforms.accounting.minute_state import (
    Backlog,
    BacklogCoder,
    MinuteCount,
    MinuteCountCoder,
    TallyCoder,
)
from transforms.accounting.tally import Tally
from transforms.records.coders import UnreadableBytes, encode_request, pack, unpack
from transforms.records.records import Request
from transforms.requests import batch_state as state_coders
from transforms.requests.batch_state import (
    EncodedBatch,
    EncodedBatchCoder,
    EncodedRequest,
    EncodedRequestCoder,
    Fill,
    FillCoder,
)

TALLY = Tally(
    collections.Counter(records=3, results=2, input_tokens=2**40),
    collections.Counter(timeout=1),
    decimal.Decimal("0.000000012"),
)
GOLDEN: list[tuple[Any, str]] = [
    (EncodedRequest(b"\x01abc", 258), "010201000001616263"),
    (EncodedBatch((b"\x01abc", b"", b"z")), "0103000000040000000161626300000000010000007a"),
    (
        Fill(2, 30, 400, 1_795_274_809_083),
        "01180000005b322c33302c3430302c313739353237343830393038335d",
    ),
    (
        TALLY,
        (
            "01540000005b7b22696e7075745f746f6b656e73223a313039393531313632373737362c22726563"
            "6f726473223a332c22726573756c7473223a327d2c7b2274696d656f7574223a317d2c22302e3030"
            "30303030303132225d"
        ),
    ),
    (
        MinuteCount(TALLY, 7, True, 1_795_274_809),
        (
            "01680000005b5b7b22696e7075745f746f6b656e73223a313039393531313632373737362c227265"
            "636f726473223a332c22726573756c7473223a327d2c7b2274696d656f7574223a317d2c22302e30"
            "3030303030303132225d2c372c747275652c313739353237343830395d"
        ),
    ),
    (
        Backlog({29_000_001: 2, 29_000_000: -1}),
        "011e0000005b5b5b32393030303030302c2d315d2c5b32393030303030312c325d5d5d",
    ),
]
CODERS: dict[type, Any] = {
    EncodedRequest: EncodedRequestCoder,
    EncodedBatch: EncodedBatchCoder,
    Fill: FillCoder,
    Tally: TallyCoder,
    MinuteCount: MinuteCountCoder,
    Backlog: BacklogCoder,
}

COUNTS = st.integers(0, 2**70)
COUNTERS = st.dictionaries(st.text(max_size=8), st.integers(-5, 2**70)).map(collections.Counter)
COSTS = st.none() | st.decimals(0, 10**9, places=9)
TALLIES = st.builds(Tally, COUNTERS, COUNTERS, COSTS)
VALUES = (
    st.builds(EncodedRequest, st.binary(), st.integers(0, 2**32 - 1))
    | st.builds(EncodedBatch, st.lists(st.binary(), max_size=5).map(tuple))
    | st.builds(Fill, COUNTS, COUNTS, COUNTS, COUNTS)
    | TALLIES
    | st.builds(MinuteCount, TALLIES, COUNTS, st.booleans(), COUNTS)
    | st.builds(Backlog, st.dictionaries(COUNTS, st.integers(-5, 2**70)))
)


@pytest.mark.parametrize(("value", "golden"), GOLDEN, ids=lambda v: type(v).__name__)
def test_golden_bytes(value: Any, golden: str) -> None:
    """The bytes of version 1, for ever: they stand in the state of jobs that are updated."""
    coder = CODERS[type(value)]()
    assert coder.encode(value).hex() == golden
    assert coder.decode(bytes.fromhex(golden)) == value


@settings(deadline=None)
@given(VALUES)
def test_round_trip(value: Any) -> None:
    """Whatever is kept comes back equal, and equal values give equal bytes."""
    coder = CODERS[type(value)]()
    encoded = coder.encode(value)
    assert coder.decode(encoded) == value
    assert coder.encode(coder.decode(encoded)) == encoded


@settings(deadline=None)
@given(st.lists(REQUESTS, max_size=4))
def test_requests_survive_a_batch(requests: list[Request]) -> None:
    """Encoded once, and opened as they were, in order."""
    encoded = [EncodedRequest.of(request) for request in requests]
    batch = EncodedBatch(tuple(request.encoded for request in encoded))
    opened = state_coders.decode_batch(state_coders.encode_batch(batch)).open()
    assert repr(opened) == repr(requests)


def test_an_encoded_request_is_the_request_coder_s_bytes() -> None:
    """Its state is readable as long as a `Request` is; a huge estimate does not break the header."""
    request = EncodedRequest.of(REQUEST)
    assert request == EncodedRequest(encode_request(REQUEST), 12)
    huge = Request(REQUEST.record, {}, {}, "", 2**40)
    assert EncodedRequest.of(huge).tokens == 2**32 - 1
    assert len(state_coders.encode_encoded_request(EncodedRequest.of(huge))) > 5


@pytest.mark.parametrize(
    ("coder", "values", "expected"),
    [
        (FillCoder, [2, 30], Fill(2, 30)),
        (FillCoder, [2, 30, 400, 5, "new"], Fill(2, 30, 400, 5)),
        (TallyCoder, [{"records": 1}, {}, None, "new"], Tally(collections.Counter(records=1))),
        (
            MinuteCountCoder,
            [[{"records": 1}, {}, None]],
            MinuteCount(Tally(collections.Counter(records=1))),
        ),
        (
            MinuteCountCoder,
            [[{}, {}, "1.5", 0], 3, True, 4, "new"],
            MinuteCount(Tally(cost_usd=decimal.Decimal("1.5")), 3, True, 4),
        ),
        (BacklogCoder, [[[5, 2, "new"]], "new"], Backlog({5: 2})),
    ],
)
def test_older_and_newer_writers(coder: Any, values: list[Any], expected: Any) -> None:
    """What an older version lacks takes its default; what a newer one adds is dropped."""
    assert coder().decode(pack(values)) == expected


@pytest.mark.parametrize(("value", "golden"), GOLDEN, ids=lambda v: type(v).__name__)
def test_unknown_version(value: Any, golden: str) -> None:
    """Bytes of a version that nobody knows are refused, not guessed at."""
    with pytest.raises(UnreadableBytes, match="coder version 2 is not known"):
        CODERS[type(value)]().decode(b"\x02" + bytes.fromhex(golden)[1:])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (18, "a batch of 19 bytes is cut at 18"),
        (15, "a batch of at least 16 bytes is cut at 15"),
        (11, "a batch of at least 16 bytes is cut at 11"),
        (8, "a batch of at least 9 bytes is cut at 8"),
        (4, "a header of 5 bytes is cut at 4"),
    ],
)
def test_a_cut_batch(size: int, message: str) -> None:
    """A request that is not whole is not decoded, the last one or another."""
    encoded = state_coders.encode_batch(EncodedBatch((b"abc", b"def")))
    with pytest.raises(UnreadableBytes, match=message):
        state_coders.decode_batch(encoded[:size])


@settings(deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=5), st.data())
def test_no_cut_batch_is_decoded(requests: list[bytes], data: st.DataObject) -> None:
    """Wherever it is cut."""
    encoded = state_coders.encode_batch(EncodedBatch(tuple(requests)))
    size = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(UnreadableBytes, match="is cut at"):
        state_coders.decode_batch(encoded[:size])


@pytest.mark.parametrize(("kind", "coder"), CODERS.items())
def test_registry(kind: type, coder: Any) -> None:
    """Beam takes our coders for our types; they are deterministic."""
    assert registry.get_coder(kind) == coder()
    assert registry.get_coder(kind).is_deterministic()


def test_a_list_of_requests_is_no_pickle() -> None:
    """Beam's choice for ``list[Request]``: its own framing around our coder."""
    coder = registry.get_coder(typehints.List[Request])
    assert repr(coder) == "ListCoder[RequestCoder]"
    encoded = coder.encode([REQUEST, REQUEST])
    assert encoded.count(encode_request(REQUEST)) == 2


_SPECS = """
from apache_beam.runners.pipeline_context import PipelineContext
from transforms.accounting.minute_state import *
from transforms.requests.batch_state import *
for kind in (EncodedRequestCoder, EncodedBatchCoder, FillCoder, TallyCoder, MinuteCountCoder, BacklogCoder):
    print(kind().to_runner_api(PipelineContext()).spec.payload.hex())
"""


def test_coders_are_named_alike_by_every_process() -> None:
    """A job's coders are pickled into its graph: by their names, so that an update finds the same."""
    done = subprocess.run(
        [sys.executable, "-c", _SPECS], capture_output=True, text=True, check=True
    )
    here = [coder().to_runner_api(PipelineContext()).spec.payload for coder in CODERS.values()]
    assert done.stdout.split() == [payload.hex() for payload in here]
    assert all(len(payload) < 250 for payload in here)


def test_a_tally_is_smaller_than_its_pickle() -> None:
    """Tallies travel for each bundle; what is zero is not written."""
    coder = TallyCoder()
    empty = Tally(collections.Counter(records=0), collections.Counter())
    assert unpack(coder.encode(empty))[0] == [{}, {}, None]
    assert len(coder.encode(TALLY)) < len(pickle.dumps(TALLY)) / 2
