"""Mirrors `transforms.vllm_server`."""
