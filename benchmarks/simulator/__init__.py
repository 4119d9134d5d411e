"""A simulated model server for load: queues, quotas, outages and faults, the same for every client.

Run it with ``python -m benchmarks.simulator``, or in this process with ``server.running``. It is
one asyncio loop on 127.0.0.1 that reads HTTP itself, so that the server is not what a benchmark
measures.

Guaranteed: what befalls a call (its service time, its fault, the length of its answer) is a
function of the seed, the record and how often the record was asked, and of nothing else. Two
clients that ask for the same records meet the same luck in whatever order they ask. A call with
several texts to embed meets that of the first, and is refused if one of them is poison. Every call
that reaches the server is logged (``log``).

What it does not prove: no real endpoint was called. Quotas of Vertex AI are not published as an
algorithm (here: token buckets), service times do not depend on load or length (a vLLM server slows
down as its batch fills), and tokens are four characters each. It shows how a client reacts to a
server that behaves as written here.
"""
