"""`python -m backbones COMMAND`, or `backbones COMMAND` where the package is installed."""

import importlib
import inspect

import tyro

import backbones.distributed as distributed
from backbones.commands.exit import run_command
from backbones.errors import InputError, check_known

COMMANDS = {
    "train": "train an experiment, also one of your own, module:name; `train.py` shows those of this project",
    "sweep": "train an experiment with every combination of some options, or with random ones, and compare",
    "evaluate": "accuracy by class and confusion of a checkpoint, or the classes of image files",
    "features": "the features of a data set as a table; accuracy of nearest neighbours and of a linear probe",
    "probe": "a linear probe on features that were written before",
    "explain": "which parts of image files decide the predicted class: gradient, Grad-CAM, attention",
    "nearest": "the images of a data set whose features are nearest to those of image files",
    "report": "a page of runs: table, curves, differences, confusion, worst mistakes, augmented images",
    "checkpoint": "show, compare and verify checkpoints",
    "export": "weights of a checkpoint for other programs: safetensors, torch.export, ONNX, AOTInductor, timm",
    "reproduce": "run a finished run again and compare the parameters",
    "audit": "repeat the training between two checkpoints of a run, and compare every leaf",
    "profile": "parameters, multiply-accumulates, activations and time of models",
    "schedule": "draw a learning-rate schedule",
    "augment-preview": "draw training images before and after augmentation",
}
"""Name -> what it does. Each is a module of this package, with `_` for `-`: its `main(args)` is called,
or where it has none the function that is named as the module."""

IN_PROCESSES = ("train", "reproduce", "audit")
"""Those that torchrun may start in several processes."""


def main() -> None:
    """Run the command that is named first on the command line."""
    run_command(lambda args: run(*args))


def run(name: str = "--help", *args: str) -> bool | None:
    """Run a command by its name; False if what it compares differs."""
    if name in ("-h", "--help"):
        print("usage: backbones COMMAND [--help]\n")
        for command, summary in COMMANDS.items():
            print(f"  {command:17s}{summary}")
        return None
    check_known("command", name, COMMANDS)
    distributed.join()
    if name not in IN_PROCESSES and distributed.world_size() > 1:
        raise InputError(f"{name} runs in one process, and torchrun has started several; start it without torchrun")
    module = importlib.import_module(f"backbones.commands.{name.replace('-', '_')}")
    if hasattr(module, "main"):
        return module.main([*args])
    from backbones.commands.options import check_given_once  # late: it imports every component

    command = getattr(module, name)
    check_given_once(args, {each.name: each.annotation for each in inspect.signature(command).parameters.values()})
    return tyro.cli(command, args=args, prog=f"backbones {name}", console_outputs=distributed.is_main())
