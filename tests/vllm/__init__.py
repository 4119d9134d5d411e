"""The real vLLM on a CPU, with a tiny model that is made here; see `environment`."""
