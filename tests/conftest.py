"""Fixtures for the whole test suite."""

pytest_plugins = ["tests.emulators.fixtures", "tests.emulators.model_fixtures"]
