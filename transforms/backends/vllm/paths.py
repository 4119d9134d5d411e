"""The folder where a machine's servers keep their locks, sockets, states and copied weights."""

import os
import stat
import tempfile

from transforms.records.errors import BackendUnusable

FOLDER_VARIABLE = "VLLM_SERVER_FOLDER"


def base_folder(named: str | None = None) -> str:
    """The folder that all processes of a machine share; created if it does not exist.

    Args:
      named: The folder that the backend names; else `FOLDER_VARIABLE` names it, else it is below
        the temporary folder, by this user's number.

    Raises:
      BackendUnusable: Somebody else could write there, and the files in it are executed and
      trusted.
    """
    named = named or os.environ.get(FOLDER_VARIABLE)
    temporary = os.path.join(tempfile.gettempdir(), f"batch-inference-vllm-{os.getuid()}")
    folder = os.path.abspath(named or temporary)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.stat(folder) if named else os.lstat(folder)  # anybody could have made a link there
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise BackendUnusable(
            f"{folder!r} belongs to another user: set {FOLDER_VARIABLE} to a folder of your own"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BackendUnusable(
            f"other users can write to {folder!r}: revoke that (chmod go-w), or set "
            f"{FOLDER_VARIABLE} to a folder that only you can write to"
        )
    return folder
