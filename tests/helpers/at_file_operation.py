"""Run train.py, and shell commands just before some of its file operations, so that no test has to race against it:

    python tests/helpers/at_file_operation.py '{"os.rename run/checkpoints/20.tmp": "kill -TERM $PPID"}' --steps 60 ...

`$PPID` is the process that trains. Each command is run once, by the thread that is about to do the operation.
"""

import json
import runpy
import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).parent.parent.parent / "train.py"


def main() -> None:
    """The first argument is a JSON object: operation (an event of `sys.addaudithook` and its path) -> command."""
    commands = json.loads(sys.argv.pop(1))

    def run_command(event: str, args: tuple) -> None:
        if event in ("os.mkdir", "os.rename") and (command := commands.pop(f"{event} {args[0]}", None)):
            # torchrun sends its signals to the whole process group of a rank, which must not include this shell
            subprocess.run(command, shell=True, check=True, start_new_session=True)

    sys.addaudithook(run_command)
    sys.argv[0], sys.path[0] = str(TRAIN), str(TRAIN.parent)
    runpy.run_path(str(TRAIN), run_name="__main__")


if __name__ == "__main__":
    main()
