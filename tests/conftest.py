"""Fixtures for the whole test suite."""

import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.emulators.fixtures", "tests.emulators.model_fixtures"]

# A shell's background job ignores Ctrl-C, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure: an example may take as long as it needs.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
