"""`python -m backbones COMMAND`, or `backbones COMMAND` where the package is installed."""

import importlib
import sys

COMMANDS = {
    "train": "train an experiment of your own, module:name; `train.py` knows those of this project by name",
    "evaluate": "accuracy by class and confusion of a checkpoint, or the classes of image files",
    "checkpoint": "show, compare, verify and export checkpoints",
    "reproduce": "run a finished run again and compare the parameters",
    "profile": "parameters, multiply-accumulates, activations and time of models",
    "schedule": "draw a learning-rate schedule",
}
"""Name -> what it does. Each is a module of this package with a function `main(args)`."""


def main() -> None:
    """Run the command that is named first on the command line."""
    from backbones.commands.exit import run_command

    run_command(lambda: dispatch(sys.argv[1:]))


def dispatch(args: list[str]) -> bool | None:
    """Run a command line without the program's name.

    Raises:
        InputError: there is no such command.
    """
    from backbones.errors import check_known

    if not args or args[0] in ("-h", "--help"):
        print("usage: backbones COMMAND [--help]\n")
        for name, summary in COMMANDS.items():
            print(f"  {name:12s}{summary}")
        return None
    name = check_known("command", args[0], COMMANDS)
    return importlib.import_module(f"backbones.commands.{name}").main(args[1:])
