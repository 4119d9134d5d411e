"""One flag, as data: `pipeline.options.command_line` has the list."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One flag.

    Attributes:
      name: In snake case; the flag is ``--name``, the template parameter ``name``.
      group: The heading it stands under.
      help: What it does, in a sentence or two.
      default: As the user would write it; ``''`` for none.
      choices: The values it takes, when it takes only some.
      metavar: What stands for the value in the help.
    """

    name: str
    group: str
    help: str
    default: str = ""
    choices: tuple[str, ...] = ()
    metavar: str = "TEXT"
