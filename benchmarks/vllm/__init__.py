"""How full our pipeline keeps a real vLLM: beside a sliding window, the limit, and stock Beam.

One vLLM 0.32 on a CPU with a tiny model, whose step takes the time of a GPU's (`gpushape`): who
sends badly drains the batch, as on a GPU. All lines ask the same server for the same prompts, made
unlike for each line, so that no line finds another's prefixes in the cache; the lines of
``--order_by_prefix`` have a server of their own, with a small cache.

``ours`` is the whole command at default flags; its time runs from the first request to the last
answer, as the others' does. Never take the absolute figures for a GPU's: the ratios are the point.

Besides figures there are facts that must be so: no id lost or doubled, exactly the poisoned records
are dead letters, exactly two restarts after two kills, no process left. Where one is not, the table
says it and the command ends with status 1.
"""
