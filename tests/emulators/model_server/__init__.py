"""One simulated model server: the Vertex AI and OpenAI wire formats on one loopback port.

Run it with ``python -m tests.emulators.model_server``. No model answers here: an answer is computed
from the prompt, and markers inside the prompt (``faults``) make each record meet a known failure.

Limits: the formats were written from recorded requests, vendor documentation and
third-party captures; no real endpoint was called. A test that passes against it shows that our side
agrees with these notes, not that Vertex AI, OpenAI or vLLM would answer the same. Limits, quotas,
safety filters, token counts and latency of a real service are not modelled.
"""
