"""A launched server's side of the link to the process that owns it (see processes.py).

Two pipes are the whole protocol. On standard output the server announces its addresses once, as one
line of JSON; it picks free ports itself, so no two runs can collide. Standard input never carries
data; it ends when the owner ends for any reason, and the server ends with it. Standard library
only: the servers run in another environment.
"""

import json
import os
import threading


class OwnerLink:
    """The server's end of the two pipes."""

    def __init__(self) -> None:
        """Reserves standard output for the announcement; later prints go to standard error."""
        self._announcements = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def announce(self, **addresses: str) -> None:
        """Tells the owner that the server accepts requests, and on which addresses."""
        with self._announcements as pipe:
            pipe.write(json.dumps(addresses) + "\n")

    def end_with_owner(self) -> None:
        """Ends this process, without clean-up, as soon as its owner is gone."""

        def wait_for_the_end() -> None:
            while os.read(0, 4096):
                pass
            os._exit(0)

        threading.Thread(target=wait_for_the_end, daemon=True).start()
