"""Tests of `pipeline.local`."""
