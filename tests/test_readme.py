"""What the README and docs/ show works, to the letter."""

import dataclasses
import importlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
import torchvision.models
from helpers.processes import Process, run as run_process
from helpers.runs import ROOT, SMALL, free_port, newest
from helpers.trees import CLASSES, encoded, random_image, write_folder
from PIL import Image

import backbones.commands
import backbones.tree as tree
from backbones.commands.train import parse
from backbones.data import digits
from backbones.experiment import Experiment
from backbones.models import MODELS
from backbones.run.metric_lines import read_metrics
from backbones.run.run import run
from docs.architecture import draw
from experiments import CLAIMS, EXPERIMENTS

pytestmark = pytest.mark.slow


def code_after(file: str, heading: str, language: str) -> list[str]:
    """The blocks of code in one section of a Markdown file."""
    section = (ROOT / file).read_text().partition(f"# {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def shell(command: str, cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the README as it stands, from another folder than the checkout."""
    command = command.partition("#")[0].replace("python train.py", f"python {ROOT / 'train.py'}")
    done = run_process([*command.split()[1:], *more], cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    """A model, an optimizer and an experiment: trained, killed, resumed, evaluated on a PNG."""
    text, notebook = code_after("README.md", "A model, an optimizer and an experiment of your own", "python")
    assert len([line for line in text.splitlines() if line]) <= 15
    (tmp_path / "mine.py").write_text(text.replace("steps=200", "steps=100"))
    commands = code_after("README.md", "A model, an optimizer and an experiment of your own", "sh")[0].splitlines()
    train, resume, evaluate, other = commands
    process = Process([ROOT / "train.py", *train.split()[2:]], cwd=tmp_path)
    deadline = time.monotonic() + 200
    while newest(tmp_path / "runs" / "mine") < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = newest(tmp_path / "runs" / "mine")
    assert 20 <= step < 100
    done = shell(resume, tmp_path)
    assert f"resumed from step {step}\n" in done.stdout and "with sign-sgd and constant" in done.stdout
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert result["steps"] == 100 and result["top1"] > 0.3
    test, third = digits().test, torch.tensor([3])
    image, label = test.read(third, third)[0], test.labels[3]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "digit.png")
    shown = shell(evaluate, tmp_path).stdout
    assert re.match(r"digit\.png  \d \d+\.\d%", shown) and label == 3
    shell(other, tmp_path, "--steps", "1", "--batch-size", "8", "--data.size", "8")
    shell("python -m backbones checkpoint verify runs/mine", tmp_path)
    assert "equal to the last bit" in shell("python -m backbones reproduce runs/mine", tmp_path).stdout
    exec(notebook.replace("range(100)", "range(2)"), {})


def test_a_folder_of_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, evaluated, and one more file classified."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "photos", num_train=10, size=(40, 30))
    (tmp_path / "holiday.jpg").write_bytes(encoded(random_image(5, 33, 77), "JPEG"))
    commands = code_after("README.md", "A folder of your own photos", "sh")[0].replace("\\\n", "")
    train, evaluate, classify = commands.splitlines()
    shell(train.replace("--epochs 30", "--epochs 1 --batch-size 10").replace("-size 64", "-size 32"), tmp_path)
    shown = shell(evaluate, tmp_path).stdout
    assert all(f"\n{name}" in shown for name in CLASSES) and "on the 12 images of image-folder test" in shown
    with Image.open(tmp_path / "runs" / "image-folder-resnet18-plus" / "confusion.png") as picture:
        assert picture.width > 300
    assert re.match(rf"holiday\.jpg  ({'|'.join(CLASSES)}) \d+\.\d%", shell(classify, tmp_path).stdout)


def test_a_source_of_ones_own(tmp_path: Path) -> None:
    arrays, code = code_after("docs/data.md", "Data of your own", "python")
    (tmp_path / "my_module.py").write_text(code)
    command = "python train.py --data my_module:noise --data.size 64 --model airbench --optim.lr 1e-3 --steps 20"
    done = shell(command, tmp_path, "--batch-size", "16", "--schedule.warmup-steps", "0")
    assert "on noise (64 + 64 images of 3x16x16)" in done.stdout and "top-1 100.00%" in done.stdout
    (tmp_path / "my_module.py").write_text(arrays)
    images = numpy.random.default_rng(0).integers(256, size=(20, 3, 8, 8), dtype=numpy.uint8)
    splits = {"train_images": images, "test_images": images[:10]}
    labels = {f"{split}_labels": numpy.arange(n) % 2 for split, n in (("train", 20), ("test", 10))}
    numpy.savez(tmp_path / "mine.npz", **splits, **labels)
    done = shell(f"python train.py --data my_module:my_data {SMALL} --steps 1", tmp_path)
    assert "on my-data (20 + 10 images of 3x8x8)" in done.stdout


def test_add_a_model(tmp_path: Path) -> None:
    for name in ("backbones", "experiments", "train.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (module, line), (command,) = (code_after("docs/models.md", "Add a model", kind) for kind in ("python", "sh"))
    (tmp_path / "backbones" / "models" / "tiny.py").write_text(module)
    init = tmp_path / "backbones" / "models" / "__init__.py"
    init.write_text(init.read_text().replace("FAMILIES = {\n", "FAMILIES = {\n" + line))
    args = [sys.executable, *command.split()[1:], "--steps", "2", "--device", "cpu"]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tiny (0.01 M parameters" in done.stdout
    assert (tmp_path / "runs" / "digits-tiny" / "result.json").exists()


def test_write_a_gradient_transform(tmp_path: Path) -> None:
    (text,), (command,) = (code_after("README.md", "Write a gradient transform", kind) for kind in ("python", "sh"))
    assert text in (ROOT / "experiments" / "own_transform.py").read_text()
    assert len([line for line in text.splitlines() if line]) <= 10
    options = f"--steps 2 --batch-size 8 --data.size 8 --device cpu --run-dir {tmp_path / 'run'}"
    done = shell(command, ROOT, *options.split())
    assert "with cautious-sgd and cosine" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    path = "experiments.own_transform:cautious_sgd"
    assert config["optim"] == {"function": path, "options": {"lr": 0.1, "decay": 0.9}}


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = torchvision.models.resnet50().state_dict()
    torch.save(theirs, "resnet50.pth")
    (features,) = code_after("docs/models.md", "Features", "python")
    names = {"images": torch.randn(2, 3, 32, 32)}
    exec(features, names)
    assert list(names["features"]) == ["stem", "stage1", "stage2", "stage3", "stage4", "pooled"]
    _, weights = code_after("docs/models.md", "Weights from elsewhere", "python")
    exec(weights, names)
    exported = names["read_state_dict"]("resnet50.safetensors")
    assert exported.keys() == theirs.keys()
    assert all(torch.equal(exported[key], leaf) for key, leaf in theirs.items())


def test_a_checkpoint_reads_with_orbax_alone_and_its_weights_with_safetensors(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(dataclasses.replace(experiment, steps=2))
    backbones.commands.run("export", "runs/digits-vit-tiny", "--format", "safetensors")
    notebook, code = code_after("docs/checkpoints.md", "Checkpoints", "python")
    names = {"images": digits().test.read(torch.arange(3), torch.arange(3))}
    exec(notebook, names)
    assert names["probabilities"].shape == (3, 10) and names["model"].info.class_names[9] == "9"
    assert len([line for line in code.splitlines() if line]) == 5
    capsys.readouterr()
    exec(code.replace("checkpoints/1000", "checkpoints/2"), {})
    assert capsys.readouterr().out == "True\n"


SRUN = """#!/bin/bash
shift
for machine in $(seq $SLURM_NNODES); do "$@" & pids="$pids $!"; done
trap 'kill -TERM $pids' TERM
echo $$ > srun.pid
for pid in $pids; do wait $pid || wait $pid; done
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else touch requeued; kill -TERM $(cat srun.pid); fi
"""


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins that run the command of two machines here; the job that is requeued has one of them."""
    (script,) = code_after("docs/scale.md", "Slurm", "sh")
    (tmp_path / "train.sh").write_text(script.replace("train.py", str(ROOT / "train.py")))
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    job = {
        "PORT": free_port(),
        "SLURM_JOB_ID": 7,
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NNODES": 2,
        "SLURM_GPUS_ON_NODE": 1,
    }
    for name, value in {**job, "SLURM_STEP_NUM_TASKS": 2, "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    command, run_dir = f"bash train.sh {SMALL} --steps=80 --save-every=10".split(), tmp_path / "runs" / "7"
    job = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while newest(run_dir) < 10 and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    output, errors = job.communicate(timeout=200)
    step = newest(run_dir)
    assert " on 2 x cpu " in output and f"stopped after step {step} of 80, saved in" in errors, errors
    assert (tmp_path / "requeued").exists()
    monkeypatch.setenv("SLURM_NNODES", "1")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and f"resumed from step {step}\n" in done.stdout, done.stderr
    assert json.loads((run_dir / "result.json").read_text())["num_processes"] == 1


@pytest.mark.parametrize("section", ["submitit", "optuna"])
def test_an_example_has_at_most_15_lines(section: str) -> None:
    (text,) = code_after("docs/sweeps.md", section, "python")
    assert len([line for line in text.splitlines() if line.strip()]) <= 15


def test_submitit(tmp_path: Path) -> None:
    """Its executor of this machine, with a short run."""
    (text,) = code_after("docs/sweeps.md", "submitit", "python")
    text = text.replace("replace(digits_vit_tiny, name", "replace(digits_vit_tiny, steps=2, batch_size=8, name")
    points = "(3e-4, 1e-3, 3e-3) for seed in (0, 1)"
    (tmp_path / "sweep.py").write_text(text.replace(points, "(3e-4,) for seed in (1,)"))
    done = shell("python sweep.py", tmp_path)
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["0.0003", "1"]]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["lr-0.0003-seed-1"]


def test_optuna(tmp_path: Path) -> None:
    """With two short runs."""
    (text,) = code_after("docs/sweeps.md", "optuna", "python")
    small = "replace(digits_vit_tiny, model=digits_vit_tiny.model.replace(depth=1), steps=3, batch_size=8, name"
    text = text.replace("replace(digits_vit_tiny, name", small)
    text = text.replace("(100, 300, 1000)", "(1, 2, 3)").replace("n_trials=20", "n_trials=2")
    (tmp_path / "search.py").write_text(text.replace("n_trials=2", "n_trials=1"))
    shell("python search.py", tmp_path)
    (tmp_path / "search.py").write_text(text)  # goes on with the second trial
    done = shell("python search.py", tmp_path)
    assert re.match(r"\{'lr': 0\.0\d+\} 0\.\d+", done.stdout.splitlines()[-1])
    results = [json.loads((tmp_path / "runs" / f"trial-{i}" / "result.json").read_text()) for i in range(2)]
    assert [result["steps"] for result in results] == [3, 3]


def test_the_picture_of_the_imports_is_current() -> None:
    assert (ROOT / "docs" / "architecture.md").read_text() == draw(), "run python -m docs.architecture"


def test_an_augmentation_of_ones_own(tmp_path: Path) -> None:
    (text,) = code_after("docs/augment.md", "Chain them, or write one", "python")
    (tmp_path / "mine.py").write_text(text)
    train, preview = code_after("docs/augment.md", "Augmentations", "sh")[0].splitlines()
    shell(preview, tmp_path)
    assert (tmp_path / "a.png").exists()
    shell(train, tmp_path, *SMALL.split(), "--steps", "2")
    own = ["--augment", "mine:inverted", "--augment.probability", "0.5"]
    shell("python train.py", tmp_path, *own, *SMALL.split(), "--steps", "2")
    shell("python -m backbones augment-preview runs/digits-vit-tiny-2", tmp_path, *own, "--out", "b.png")
    assert (tmp_path / "b.png").exists()


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    (text,), (command,) = (code_after("docs/runs.md", "A loss of your own", kind) for kind in ("python", "sh"))
    (tmp_path / "mine.py").write_text(text)
    shell(command, tmp_path, *SMALL.split(), "--steps", "2", "--augment", "mixup", "--label-smoothing", "0.1")
    config = json.loads((tmp_path / "runs" / "digits-vit-tiny" / "config.json").read_text())
    assert config["loss"] == {"function": "mine:focal", "options": {"gamma": 1.5}}
    shell("python -m backbones evaluate runs/digits-vit-tiny", tmp_path)


def commands_of(file: Path) -> list[str]:
    """Every command of train.py and of backbones in a Markdown file, with the variables that it sets."""
    text = file.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    prose = re.findall(r"`(?:python|torchrun) ([^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines, variables = [], dict[str, str]()
    for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *prose]:
        expanded = re.sub(r"\$(\w+)", lambda found: variables.get(found[1], "1"), line)
        if assigned := re.match(r'(\w+)="(.*)"$', expanded):
            variables[assigned[1]] = assigned[2]
        lines.append(expanded)
    found = [re.search(r"(\btrain\.py|-m backbones)\b.*", line) for line in lines]
    return [re.sub(r"#.*|[\"&\\]", "", each[0]) for each in found if each]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_every_command_has_these_options(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in commands_of(file):
        if re.search(r"NAME|mine:|my_|--config|--help|--model tiny|--resume sweeps|@", command):  # what is not here
            continue
        args = command.split()
        if args[0] == "train.py":
            args = re.sub(r"--resume( [a-z0-9][a-z/0-9-]*)?( |$)", "", " ".join(args[1:])).split()
            parse(args, EXPERIMENTS)
        elif "--help" not in args:
            monkeypatch.setattr(sys, "argv", ["backbones", *args[2:], "--help"])
            with pytest.raises(SystemExit):
                backbones.commands.main()
            known = {each.rstrip(".") for each in re.findall(r"--[\w.-]+", capsys.readouterr().out)}
            assert [each for each in args if each.startswith("--") and each not in known] == [], command


def test_every_benchmark_has_these_options() -> None:
    pages = "\n".join(file.read_text() for file in (*PAGES, ROOT / "benchmarks" / "README.md")).replace("\\\n", " ")
    commands = re.findall(r"-m (benchmarks\.\w+)([^`#\n]*)", pages)
    assert len({module for module, _ in commands}) > 5
    for module, rest in commands:
        found = importlib.import_module(module)
        call = found.COMMANDS[rest.split()[0]] if hasattr(found, "COMMANDS") else found.main
        known = inspect.signature(call).parameters
        assert {*re.findall(r"--([\w-]+)", rest.replace("_", "-"))} <= {name.replace("_", "-") for name in known}, rest


def test_links_lead_somewhere() -> None:
    for file in (*PAGES, ROOT / "benchmarks" / "README.md"):
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", file.read_text()):
            target = file.parent / path if path else file
            assert target.exists(), (file.name, path)
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
                anchors = [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings]
                assert anchor in anchors, (file.name, anchor)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_tables_say_what_the_claims_say() -> None:
    """What `train.py --list` prints of the recipes, in the README and in docs/experiments.md."""
    readme, page = ((ROOT / name).read_text() for name in ("README.md", "docs/experiments.md"))
    found = re.findall(r"`cifar10-(\S+)-plus` \| (\S+ %) \| (\S+ %)", readme)
    rows = re.findall(r"^\| (\S+) \| (\S+ %) \| (\S+ %) \| \+", page, re.MULTILINE)
    assert len(found) == len(rows) == 10
    pairs = [*rows, *((name, plain, plus) for name, plus, plain in found)]
    claimed = [
        (f"cifar10-{name}{end}", each) for name, *both in pairs for end, each in zip(("", "-plus"), both, strict=True)
    ]
    small = re.findall(r"`python train.py (digits-\S+)` \| \S+ \| (\S+ %)", page)
    assert len(small) == 10
    for name, top1 in [*claimed, *small]:
        assert CLAIMS[name].startswith(top1), name
    (longest,) = re.findall(r"for 30 epochs.*\*\*(\S+ %)\*\*", readme)
    assert f"{longest} in 30, " in CLAIMS["cifar10-resnet18-plus"] and f"reaches {longest} at the last step" in page


def test_the_table_of_models_is_current() -> None:
    rows = re.findall(r"^\| (\S+) \| ([\d,]+) \|", (ROOT / "docs" / "models.md").read_text(), re.MULTILINE)
    models = [(name, make((3, 32, 32), 10)) for name, make in MODELS.items()]
    assert rows == [(name, f"{tree.size([*model.skeleton.parameters()]):,}") for name, model in models]
    assert f"the {len(MODELS)} models here" in (ROOT / "README.md").read_text()


def test_a_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits-resnet18", "digits-vit-tiny"):
        shutil.copytree(finished, tmp_path / "runs" / name)
    command = code_after("docs/report.md", "A report of runs", "sh")[0].splitlines()[0]
    shell(command, tmp_path)
    assert (tmp_path / "report.html").exists() and (tmp_path / "report-png" / "overview.png").exists()
    exec(code_after("docs/report.md", "A report of runs", "python")[0], {})
    assert "digits-resnet18 Statistic(mean=" in capsys.readouterr().out


def test_a_tracker_of_ones_own(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has all lines, also those of before a resume."""
    monkeypatch.chdir(tmp_path)
    (text,) = code_after("docs/logging.md", "A tracker of your own", "python")
    assert len([line for line in text.splitlines() if line]) <= 10
    (tmp_path / "to_csv_tracker.py").write_text(text)
    for steps in (1, 2):
        longer = dataclasses.replace(experiment, steps=steps)
        run(longer, run_dir=tmp_path / "run", resume="auto", log_to=["to_csv_tracker:to_csv"])
    rows = [line.split(",") for line in (tmp_path / "run.csv").read_text().splitlines()]
    losses = {(step, name): float(value) for step, name, value in rows if name.endswith("/loss")}
    lines = read_metrics(tmp_path / "run")
    wanted = {(str(line["step"]), f"{line['split']}/loss"): line["loss"] for line in lines}
    assert losses == {**wanted, ("2", "result/loss"): losses["2", "test/loss"]}
