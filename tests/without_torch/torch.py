"""Stands before torch on a sub-process's path: Beam imports torch where it can, in two seconds.

Neither the template's image nor most machines that launch a job have it.
"""

raise ImportError("torch is hidden from this test")
