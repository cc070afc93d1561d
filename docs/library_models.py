"""`python -m docs.library_models`: try the models of torchvision and of timm, and write docs/library_models.md.

All of torchvision's classifiers, and 200 of timm's names: one of each of its files, and others at random. Each is
initialised, gives logits, which are compared with those of the module itself, and takes a train step; models of more
than 100 million parameters do so on the meta device, without numbers.
"""

import gc
import random as python_random
import resource
import warnings
from pathlib import Path
from typing import Any

import timm.models
import torch
import torchvision.models
from torch import Tensor, nn
from tqdm import tqdm

import backbones.machine as machine
import backbones.random as random
import backbones.tree as tree
from backbones import optim
from backbones.errors import InputError
from backbones.gradient import grad_and_value
from backbones.models import LIBRARIES, Model
from backbones.models.counterpart import Library, arguments_of_theirs
from backbones.optim.schedule import constant
from backbones.train_step import make_loss_fn
from backbones.types import Batch, ModelState, Params

NUM_NAMES, MOST_PARAMETERS, TOLERANCE = 200, 100e6, 1e-5
SIZES = (32, 64, 128, 224, 240, 256, 384, 448, 512)
"""Sides of the images that are tried, pixels."""

OUT = Path(__file__).with_suffix(".md")


def draw_names(seed: int = 0) -> list[str]:
    """One of timm's names for each of its files, and others, all at random."""
    names = timm.models.list_models()
    drawn = python_random.Random(seed)
    drawn.shuffle(names)
    one_of_each = {timm.models.model_entrypoint(name).__module__: name for name in names}
    chosen = sorted(one_of_each.values())
    others = [name for name in names if name not in chosen]
    return sorted(chosen + others[: NUM_NAMES - len(chosen)])


def try_model(library: Library, name: str) -> tuple[int, bool, float]:
    """The smallest size of images that the model takes, whether it computed with numbers, and the error of its logits.

    The error is that of float32; or of float64, where it is above the tolerance.

    Raises:
        InputError: it takes no image of any of the sizes.
    """
    errors: list[InputError] = []
    for size in SIZES:
        try:
            model = LIBRARIES[library]((3, size, size), 10, architecture=name)
            break
        except InputError as error:
            errors.append(error)
    else:
        raise next((error for error in errors if "wanted logits" in str(error)), errors[-1])
    num_params = sum(leaf.numel() for leaf in model.skeleton.parameters())
    if num_params > MOST_PARAMETERS:
        params, model_state = dict(model.skeleton.named_parameters()), dict(model.skeleton.named_buffers())
        take_a_step(model, params, model_state, torch.empty(2, 3, size, size, device="meta"))
        return size, False, 0.0
    images = torch.randn(2, 3, size, size, generator=random.generator(1))
    params, model_state = model.init(random.generator(0))
    noise = random.generator(2)  # else a head of zeros would make all logits equal, and layer scales hide the layers
    params = {
        key: leaf if leaf.unique().numel() > 1 else leaf + 0.02 * torch.randn(leaf.shape, generator=noise)
        for key, leaf in params.items()
    }
    module = their_module(library, name, size)
    state_dict = module.state_dict()  # it knows the version of each layer, which some ask for
    state_dict.update({**params, **model_state})
    module.load_state_dict(state_dict, strict=False)
    take_a_step(model, params, model_state, images)
    error = difference(module, model, params, model_state, images)
    if error > TOLERANCE:  # perhaps rounding errors, which some networks multiply
        trees = params, model_state, images
        trees = tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, trees)
        error = difference(module.double(), model, *trees)
    return size, True, error


def difference(module: nn.Module, model: Model, params: Params, model_state: ModelState, images: Tensor) -> float:
    """The largest difference of a logit, relative to the largest logit."""
    with torch.no_grad():
        theirs = module(images)
        ours, _ = model.apply(params, model_state, images, train=False)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def their_module(library: Library, name: str, size: int) -> nn.Module:
    """The module itself, in evaluation mode."""
    make = torchvision.models.get_model if library == "torchvision" else timm.create_model
    return make(name, **arguments_of_theirs(library, name, (3, size, size), 10)).eval()


def take_a_step(model: Model, params: Any, model_state: Any, images: Tensor) -> None:
    """One update by SGD; it changes the parameters, but for their shapes."""
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    batch = Batch(images, labels, None, torch.ones_like(labels, dtype=torch.float32), labels, labels)
    compute = grad_and_value(make_loss_fn(model, label_smoothing=0.1), params, transform="autograd")
    grads, _ = compute(params, model_state, [batch])
    optimizer = optim.sgd(constant(num_steps=1), lr=0.1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    updated = optim.apply_updates(params, updates)
    assert tree.map(lambda leaf: leaf.shape, updated) == tree.map(lambda leaf: leaf.shape, params)


def main() -> None:
    """Try all, and write the page; it is written as far as it is known after each, since this takes half an hour."""
    warnings.simplefilter("ignore")
    memory = int(machine.free_memory())
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))  # a model that takes more is an error, not the end
    cases = [("torchvision", name) for name in torchvision.models.list_models(module=torchvision.models)]
    cases += [("timm", name) for name in draw_names()]
    lines: dict[str, list[str]] = {"torchvision": [], "timm": []}
    failed: list[str] = []
    largest = 0.0
    for library, name in tqdm(cases, disable=None):
        try:
            size, with_numbers, error = try_model(library, name)
            largest = max(largest, error)
            lines[library].append(f"{name} {size}{'' if with_numbers else '*'}")
            if error > TOLERANCE:
                failed.append(f"| {name} ({library}) | its logits differ by {error:.1e} |")
        except Exception as error:
            reason = str(error).partition("\n")[0].replace("|", "/")
            failed.append(f"| {name} ({library}) | {reason if isinstance(error, InputError) else repr(error)[:200]} |")
        gc.collect()
        write_page(lines, failed, largest)


def write_page(lines: dict[str, list[str]], failed: list[str], largest: float) -> None:
    """Write what ran, by library, what did not, and the largest difference of a logit."""
    counts = {library: len(names) for library, names in lines.items()}
    page = f"""# Models of torchvision and timm

Made by `python -m docs.library_models` with torchvision {torchvision.__version__} and timm {timm.__version__}.
{counts["torchvision"]} of torchvision's classifiers and {counts["timm"]} of {NUM_NAMES} of timm's names (one of each of
its files, the others at random) were initialised, gave the logits of the module itself, and took a train step. The
largest difference, relative to the largest logit, is {largest:.1e} (in float64 where rounding errors of float32 grow
larger than that). Behind each name is the smallest side of an image that it took, of {", ".join(map(str, SIZES))}
pixels; those with a star have more than {MOST_PARAMETERS / 1e6:.0f} million parameters, and ran on shapes alone.

```sh
python train.py --model timm --model.architecture resnet10t
python train.py --model torchvision --model.architecture mobilenet_v3_small --model.pretrained mobilenet_v3_small.pth
```

## Those that do not run

| name | reason |
|---|---|
{chr(10).join(failed) or "| none | |"}

## torchvision

{", ".join(lines["torchvision"])}

## timm

{", ".join(lines["timm"])}
"""
    OUT.write_text(page)


if __name__ == "__main__":
    main()
