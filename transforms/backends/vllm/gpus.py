"""The accelerators of a machine, and how each server gets its share of them."""

import glob
import os
import re
import subprocess
from collections.abc import Mapping, Sequence

_PARALLEL = (
    ("--tensor-parallel-size", "-tp"),
    ("--pipeline-parallel-size", "-pp"),
    ("--data-parallel-size", "-dp"),
)


def accelerators(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The machine's GPUs, as ``CUDA_VISIBLE_DEVICES`` names them; empty on a CPU machine."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        hidden = next((index for index, name in enumerate(names) if name in ("", "-1")), len(names))
        return tuple(names[:hidden])
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"],  # noqa: S607 - its path differs between machines
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        count = sum(line.startswith("GPU ") for line in listed.splitlines())
    except (OSError, subprocess.SubprocessError):
        count = sum(
            re.fullmatch(r"nvidia\d+", os.path.basename(path)) is not None
            for path in glob.glob("/dev/nvidia*")
        )
    return tuple(map(str, range(count)))


def option(args: Sequence[str], *names: str) -> str | None:
    """A flag's value: the last occurrence wins, ``-`` and ``_`` are equal, ``""`` for a switch.

    >>> option(["--max-num-seqs=256", "--tensor_parallel_size", "2"], "--tensor-parallel-size")
    '2'
    >>> option(["--enforce-eager"], "--seed")
    """
    found = None
    for index, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
        if name not in names:
            continue
        following = args[index + 1] if index + 1 < len(args) else ""
        found = value if equals else "" if following.startswith("-") else following
    return found


def groups(devices: Sequence[str], args: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The accelerators of each server: as many as the arguments request, else all of them.

    Tensor parallelism divides a model's heads, so "all" is the largest power of two.

    >>> groups(["0", "1", "2", "3"], ["--tensor-parallel-size=2"])
    (('0', '1'), ('2', '3'))
    >>> groups(["0", "1", "2"], [])
    (('0', '1'),)
    >>> groups([], [])
    ((),)

    Raises:
      ValueError: The arguments request more accelerators than there are.
    """
    asked = [option(args, *names) for names in _PARALLEL]
    size = 1
    for (name, _), value in zip(_PARALLEL, asked, strict=True):
        if value is not None and not (value.isdecimal() and int(value)):
            raise ValueError(f"{name} is {value!r}, but must be a number of GPUs")
        size *= int(value or 1)
    if not devices:
        return ((),)
    if asked[0] is None:
        size *= 1 << ((len(devices) // size).bit_length() - 1) if len(devices) >= size else 1
    if size > len(devices):
        raise ValueError(f"the arguments request {size} GPUs, but the machine has {len(devices)}")
    whole = len(devices) // size * size
    if asked[0] is None:
        whole = size
    return tuple(tuple(devices[start : start + size]) for start in range(0, whole, size))


def tensor_parallel_size(group: Sequence[str], args: Sequence[str]) -> int | None:
    """The size to add to the arguments of a group; None if they set it or one GPU is enough."""
    if option(args, *_PARALLEL[0]) is not None or len(group) < 2:
        return None
    others = [int(option(args, *names) or 1) for names in _PARALLEL[1:]]
    size = len(group) // (others[0] * others[1])
    return size if size > 1 else None
