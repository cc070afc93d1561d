"""Run train.py with a disk of its own, which other processes do not see: see at_file_operation.py.

    python tests/helpers/on_a_disk.py run/checkpoints 3m '{"os.mkdir run/checkpoints/20.tmp": "..."}' --run-dir run ...

The disk is mounted at the folder that is named first. At the end `run` is copied to `saved`.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from helpers import at_file_operation

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000  # in Python from 3.12 on


def own_mounts() -> None:
    """What `unshare --map-root-user --mount` does, to this process."""
    user, group = os.getuid(), os.getgid()
    assert ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0
    for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(content)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


if __name__ == "__main__":
    disk, size = sys.argv.pop(1), sys.argv.pop(1)
    own_mounts()
    Path(disk).mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    try:
        at_file_operation.main()
    finally:
        subprocess.run(["cp", "-r", "run", "saved"], check=True)
