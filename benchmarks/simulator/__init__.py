"""A simulated model server for load tests: queues, quotas, outages and faults.

Run it with ``python -m benchmarks.simulator``, or in this process with ``server.running``. It is
one asyncio loop on 127.0.0.1 that reads HTTP itself, so that a benchmark does not measure the
server.

Guaranteed: the fate of a call (its service time, its fault, the length of its answer) is a function
of the seed, the record and the attempt, and of nothing else. Two clients that send the same records
meet the same fates in any order. A call with several texts to embed has that of the first, and is
refused if one of them is poison. Every call that reaches the server is logged (``log``).

Limits: no real endpoint was called. Quotas of Vertex AI are not published as an
algorithm (here: token buckets), service times do not depend on load or length (a vLLM server slows
down as its batch fills), and tokens are four characters each. It shows how a client reacts to a
server with this behaviour.
"""
