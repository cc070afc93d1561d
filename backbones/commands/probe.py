"""`backbones probe FEATURES`: the accuracy of classifiers on features that were written before."""

from typing import Any

from backbones.commands.options import FeaturesPath, checked_options
from backbones.ranges import Count, NonNegativeInt
from backbones.run.analysis.feature_table import read_table
from backbones.run.analysis.probe import probe_table


@checked_options
def probe(
    features: FeaturesPath, /, *, per_class: Count | None = None, seed: NonNegativeInt = 0, knn: bool = True
) -> None:
    """Accuracy of a linear classifier, and of nearest neighbours, on features: no model and no images are needed.

    Args:
        features: a file of `backbones features`.
        per_class: training images of each class that are used; None for all.
        seed: which those are, and on which fifth of them the regularisation is chosen.
        knn: measure nearest neighbours too.

    Raises:
        InputError: the file cannot be read, or has one class only.
    """
    print(format_accuracies(probe_table(read_table(features), knn=knn, per_class=per_class, seed=seed)))


def format_accuracies(found: dict[str, Any]) -> str:
    """The accuracies of `probe_table`, a line each."""
    lines = [f"trained on {found['train_images']} images, accuracy on {found['test_images']} test images:"]
    if "knn" in found:
        lines.append(f"{found['knn']['top1']:7.2%}  {found['knn']['neighbours']} nearest neighbours")
    if "linear_probe" in found:
        lines.append(f"{found['linear_probe']['top1']:7.2%}  linear probe (L2 {found['linear_probe']['l2']:g})")
    return "\n".join(lines)
