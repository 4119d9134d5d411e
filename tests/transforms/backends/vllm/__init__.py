"""Mirrors `transforms.backends.vllm`."""
