"""One vLLM server per accelerator group of a machine, shared by every process and thread on it.

.. code-block:: text

    SDK process ── ServerLease ──┐  Unix socket              pipe              own session
    SDK process ── ServerLease ──┼───────────► keeper ──────────────► guard ──────────────► vLLM
                                 │   (one per accelerator group:      (kills it and its children
                                 │    flock; starts, watches,          when the keeper is gone,
                                 │    restarts, forwards logs)         for whatever reason)

The server ends when its last user ends, also by SIGKILL, and when the keeper or the guard is
killed. The lock of an accelerator group is held until the last process of its server is gone, so
that two servers never share a GPU. Nothing here depends on Beam; `keeper`, `guard` and `processes`
use only the standard library, because they run without the rest of the package.
"""
