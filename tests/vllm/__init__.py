"""The real vLLM on a CPU, with a tiny model generated here; see `environment`."""
