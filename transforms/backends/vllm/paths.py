"""Where a machine's servers keep their locks, sockets, states and copied weights."""

import os
import stat
import tempfile

from transforms.records.errors import BackendUnusable

FOLDER_VARIABLE = "VLLM_SERVER_FOLDER"


def base_folder(named: str | None = None) -> str:
    """The folder that all processes of a machine share; made where it is not.

    Args:
      named: By a description; else `FOLDER_VARIABLE` names it, else it is below the temporary
        folder, by this user's number.

    Raises:
      BackendUnusable: Somebody else could write there: what lies in it is run and believed.
    """
    named = named or os.environ.get(FOLDER_VARIABLE)
    temporary = os.path.join(tempfile.gettempdir(), f"batch-inference-vllm-{os.getuid()}")
    folder = os.path.abspath(named or temporary)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.stat(folder) if named else os.lstat(folder)  # a link there may be anybody's
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise BackendUnusable(
            f"{folder!r} belongs to another user: set {FOLDER_VARIABLE} to a folder of your own"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BackendUnusable(
            f"others may write in {folder!r}: take that from them (chmod go-w), or set "
            f"{FOLDER_VARIABLE} to a folder that is yours alone"
        )
    return folder
