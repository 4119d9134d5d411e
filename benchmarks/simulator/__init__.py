"""A simulated model server for load: queues, quotas, outages and faults, the same for every client.

Run it with ``python -m benchmarks.simulator``, or in this process with ``server.running``. It is
one asyncio loop on 127.0.0.1 that reads HTTP itself, so that a benchmark does not measure the
server.

Guaranteed: a call's fate (its service time, its fault, the length of its answer) depends only on
the seed, the record and the number of the attempt. Two clients that send the same records meet the
same fates, whatever the order. A call with several texts to embed has the fate of the first one,
and is refused if one of them is poison. Every call that reaches the server is logged (``log``).

Limits of the proof: no real endpoint was called. Quotas of Vertex AI are not published as an
algorithm (here: token buckets), service times do not depend on load or length (a vLLM server slows
down as its batch fills), and tokens are four characters each. It shows how a client reacts to a
server that behaves as described here.
"""
