"""How well the pace adapts itself: the whole pipeline against the simulated model server.

Each scenario starts the simulator as its own process, runs ``python -m pipeline`` with its default
flags as a user does, and computes its figures from the simulator's log and from the rows that the
run wrote. ``__main__`` is the command.

.. code-block:: text

    scenarios   what runs, its goals, and the figures        runs      the processes
    saturation, quotas, failures: the kinds of scenario      analysis  pure functions of a log
    hand, stock, sampled: programs to run                    picture   the drawing

It does not prove that a real service refuses, queues and fails as the simulator does.
"""
