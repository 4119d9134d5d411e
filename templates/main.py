"""The template's entry point: runs `pipeline.main` in Dataflow's launcher.

The launcher passes our parameters and Beam's own flags, and reads the job from
``--template_location``. Exit code 0 means that the job description was written; any other code
fails the launch, and the message is in the launcher's console log.
"""

import sys
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)

from pipeline.main import main as run

_SWITCHED_ON, _SWITCHED_OFF = ("", "true", "True", "1"), ("false", "False", "0")


def switches() -> frozenset[str]:
    """Beam's flags without a value, among the options that a launch can carry.

    >>> "--no_use_public_ips" in switches()
    True
    """
    import argparse

    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for kind in (GoogleCloudOptions, SetupOptions, StandardOptions, WorkerOptions):
        kind._add_argparse_args(parser)  # noqa: SLF001 - the only list of Beam's flags
    return frozenset(
        name
        for action in parser._actions  # noqa: SLF001
        if action.nargs == 0
        for name in action.option_strings
    )


def launcher_flags(argv: Sequence[str]) -> list[str]:
    """The arguments with switches in Beam's form: ``--streaming=true`` becomes ``--streaming``.

    A launch carries strings only, so a switch arrives with a value, which Beam refuses.

    >>> launcher_flags(["--streaming=true", "--no_use_public_ips=false", "--model=true"])
    ['--streaming', '--model=true']
    """
    known, found = switches(), []
    for word in argv:
        name, equals, value = word.partition("=")
        if name not in known or not equals or value not in _SWITCHED_ON + _SWITCHED_OFF:
            found.append(word)
        elif value in _SWITCHED_ON:
            found.append(name)
    return found


if __name__ == "__main__":
    sys.argv[1:] = launcher_flags(sys.argv[1:])  # parts of Beam read their flags here
    sys.exit(run(sys.argv[1:]))
