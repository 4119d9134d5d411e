"""Tests of `transforms.backends.vllm`."""
