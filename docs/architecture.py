"""Draw the imports of the code: `python -m docs.architecture` writes docs/architecture.md."""

from pathlib import Path

from tests.test_imports import LAYERS, modules, place

NAMES = ["6: programs", "5: commands", "4: runs", "3: the training", "2: its parts", "1: processes", "0: shared types"]

HEAD = """# Architecture

Made by `python -m docs.architecture` from the imports of the code. Imports go down only, and columns of one layer do
not see each other; `tests/test_imports.py` holds both. What happens to a batch, from top to bottom:

1. `commands/train.py` reads the command line and finds the `Experiment` (`experiments/`, or a file of your own).
2. `run/run.py` gives it a folder; `run/loop.py` asks for the batch of each step.
3. `data/batches.py` says which samples make the batch of a step; a `Source` of `data/` reads them.
4. `train_step.py` augments it (`augment/`), normalizes it, takes the gradient of the loss (`gradient.py`, `models/`,
   `losses.py`), turns it into updates (`optim/`) and adds them; `jit.py` compiles all of that, or does not.
5. `run/loop.py` logs the metrics (`run/metric_writer.py`), evaluates (`evaluation.py`) and saves (`run/checkpoint/`).

```
train.py                 parse the command line, run
experiments/             recipes, each file headed by its claims; own_transform.py
backbones/
  commands/              what a person types: train, evaluate, features, probe, explain, nearest, report, sweep,
                         checkpoint, export, reproduce, audit, profile, schedule, augment-preview
  run/                   run.py: an experiment, a folder and the training in between; loop.py; metric_writer.py;
                         trackers.py; checkpoint/; lock.py; preemption.py; spikes.py; rewind.py; provenance.py;
                         run_dir.py; step_profile.py; trained_model.py; model_evaluation.py; features.py;
                         feature_table.py; probe.py; explain.py; export/; report/; sweep/; augment_sheet.py;
                         pictures.py
  compose.py             functions from an experiment to another one
  experiment.py          Experiment, and Experiment.make() -> Program(state, train_step, batches, evaluate, weights_of,
                         predict)
  component.py           use(function, **options): what an experiment is made of
  train_step.py          (state, batch) -> (state, metrics)
  vmapped.py             several trainings in one step
  evaluation.py          state -> metrics of the held-out samples
  jit.py                 eager, compiled, or a CUDA graph; donation of the state
  models/                one file per paper; base.py: Model(init, apply, features, skeleton, roles); timm.py and
                         torchvision.py: theirs by name; pretrained.py, convert.py: weights from elsewhere; frozen.py;
                         exported.py: as a graph of torch.export; counterpart.py: ours that others have
  optim/                 gradient transforms; alias.py: every optimizer as one visible chain; schedule.py
  augment/ losses.py metrics.py tta.py
  data/                  source.py: what a data set is; batches.py: step -> batch; one file per data set; files.py:
                         of image files: listing.py, images.py (decoding), reader.py, workers.py, kept.py, decoded.py
  gradient.py            the gradient by autograd, torch.func or DDP
  distributed.py         how ranks find one another, and what they send
  machine.py             threads, memory and precision: what a process takes of its machine
  torch_settings.py      what a training sets in torch, and puts back
  types.py tree.py random.py errors.py
docs/examples/           functions of functions, each in less than 40 lines: functions.md
benchmarks/              what it costs: train_step.py, data.py, image_files.py, augment.py, scaling.py, optimizers.py,
                         sweep.py, checkpoint.py, export.py;
                         airbench.py and plain_loop.py: plain torch, to compare accuracies with
tests/                   mirror backbones/; golden/: frozen trainings and experiments; test_imports.py: imports go down
```
"""


def draw() -> str:
    """The text of docs/architecture.md."""
    columns = {(i, j): sorted(column) for i, layer in enumerate(LAYERS) for j, column in enumerate(layer)}
    edges = set()
    for name, imported in modules().items():
        here = place(name)
        edges |= {(here, there) for there in map(place, imported) if here and there and here != there}
    lines = ["flowchart TD"]
    for i, title in enumerate(NAMES):
        lines.append(f'  subgraph layer{6 - i} ["{title}"]')
        for key, column in columns.items():
            if key[0] == i:
                label = "<br>".join(name.removeprefix("backbones.") for name in column)
                lines.append(f'    n{key[0]}_{key[1]}["{label}"]')
        lines.append("  end")
    # an arrow that others lead along already says nothing new
    direct = {(a, b) for a, b in edges if not any((a, c) in edges and (c, b) in edges for c in columns)}
    lines += [f"  n{a[0]}_{a[1]} --> n{b[0]}_{b[1]}" for a, b in sorted(direct)]
    diagram = "\n".join(lines)
    return f"{HEAD}\n```mermaid\n{diagram}\n```\n"


if __name__ == "__main__":
    (Path(__file__).parent / "architecture.md").write_text(draw())
