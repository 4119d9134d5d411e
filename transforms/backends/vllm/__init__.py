"""One vLLM server per accelerator group of a machine, shared by every process and thread on it.

.. code-block:: text

    SDK process ── Lease ──┐  Unix socket              pipe              own session
    SDK process ── Lease ──┼───────────► keeper ──────────────► guard ──────────────► vLLM
                           │   (one per accelerator group:      (kills it and its children
                           │    flock; starts, watches,          when the keeper is gone,
                           │    restarts, forwards logs)         however it went)

The server ends when its last user has ended, also by SIGKILL; it ends when the keeper or the guard
is killed; and the lock of an accelerator group is held until the last process of its server is
gone, so that two servers never share a GPU. Nothing here knows Beam: `keeper`, `guard` and
`processes` use the standard library only, because they run without the rest of the package.
"""
