"""Fixtures for the whole test suite."""

import signal

pytest_plugins = ["tests.emulators.fixtures", "tests.emulators.model_fixtures"]

# A shell's background job ignores Ctrl-C, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
