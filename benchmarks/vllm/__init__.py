"""How full our pipeline keeps a real vLLM, compared with a sliding window and stock Beam.

One vLLM 0.32 on a CPU with a tiny model, whose step takes the time of a GPU's (`gpushape`): a
client that sends badly drains the batch, as on a GPU. All lines send the same prompts to the same
server, each line with its own tag, so that no line finds another's prefixes in the cache; the lines
of ``--order_by_prefix`` have their own server, with a small cache.

``ours`` is the whole command at default flags; its time runs from the first request to the last
answer, as for the others. The absolute figures are not a GPU's: only the ratios matter.

Besides figures, the benchmark checks facts: no id is lost or duplicated, exactly the poisoned
records are dead letters, two kills cause exactly two restarts, no process is left. If one is wrong,
the table says so and the command returns 1.
"""
