"""Learning-rate schedules: the step -> a factor, usually in [0, 1], of the optimizer's own rate.

A schedule is a function of the step as a 0-D int64 tensor (updates done so far) and answers with a 0-D float64 tensor,
so it is part of the compiled step. `python -m backbones.optim.schedule --help` draws them.
"""

from collections.abc import Callable, Sequence
from math import pi

import torch
from torch import Tensor

from backbones.errors import InputError

Schedule = Callable[[Tensor], Tensor]


def constant(num_steps: int = 0, *, warmup_steps: int = 0) -> Schedule:
    """The factor 1, after a linear warm-up.

    Args:
        num_steps: steps of the run; unused.
        warmup_steps: steps over which the factor first rises from 0 to 1.
    """
    del num_steps
    return warm_up(warmup_steps, then=lambda step: torch.ones_like(step, dtype=torch.float64))


def linear(num_steps: int, *, warmup_steps: int = 0, floor: float = 0.0) -> Schedule:
    """A straight line from 1 down to `floor` at the end of the run.

    Args:
        num_steps: steps of the run, warm-up included.
        warmup_steps: steps over which the factor first rises from 0 to 1.
        floor: factor at the end.
    """
    decay_steps = num_steps - warmup_steps
    return warm_up(warmup_steps, then=lambda step: 1 + (floor - 1) * _fraction(step, decay_steps))


def cosine(num_steps: int, *, warmup_steps: int = 0, floor: float = 0.0) -> Schedule:
    """Half a cosine from 1 down to `floor` at the end of the run (Loshchilov and Hutter, arXiv 1608.03983, eq. 5).

    Args:
        num_steps: steps of the run, warm-up included.
        warmup_steps: steps over which the factor first rises from 0 to 1.
        floor: factor at the end.
    """
    decay_steps = num_steps - warmup_steps

    def decay(step: Tensor) -> Tensor:
        return floor + (1 - floor) * (1 + torch.cos(pi * _fraction(step, decay_steps))) / 2

    return warm_up(warmup_steps, then=decay)


def polynomial(num_steps: int, *, warmup_steps: int = 0, power: float = 2.0, floor: float = 0.0) -> Schedule:
    """A power of the straight line from 1 down to `floor` at the end of the run (as in LARS, arXiv 1708.03888).

    Args:
        num_steps: steps of the run, warm-up included.
        warmup_steps: steps over which the factor first rises from 0 to 1.
        power: exponent of what is left of the run; 1 is the straight line.
        floor: factor at the end.
    """
    decay_steps = num_steps - warmup_steps
    return warm_up(warmup_steps, then=lambda step: floor + (1 - floor) * (1 - _fraction(step, decay_steps)) ** power)


def exponential(num_steps: int, *, warmup_steps: int = 0, floor: float = 0.01) -> Schedule:
    """A geometric decay from 1 to `floor` at the end of the run.

    Args:
        num_steps: steps of the run, warm-up included.
        warmup_steps: steps over which the factor first rises from 0 to 1.
        floor: factor at the end, above 0.
    """
    decay_steps = num_steps - warmup_steps
    return warm_up(warmup_steps, then=lambda step: floor ** _fraction(step, decay_steps))


def multi_step(
    num_steps: int, *, warmup_steps: int = 0, milestones: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1
) -> Schedule:
    """Multiply by `factor` at each milestone (He et al., arXiv 1512.03385, section 4.2).

    Args:
        num_steps: steps of the run.
        warmup_steps: steps over which the factor first rises from 0 to 1.
        milestones: when to drop, as fractions of the run.
        factor: what each drop multiplies by.
    """
    boundaries = [round(milestone * num_steps) for milestone in milestones]

    def decay(step: Tensor) -> Tensor:
        drops = sum((step + warmup_steps >= boundary).to(torch.float64) for boundary in boundaries)
        return factor**drops

    return warm_up(warmup_steps, then=decay)


def wsd(num_steps: int, *, warmup_steps: int = 0, decay_fraction: float = 0.2, floor: float = 0.0) -> Schedule:
    """Warm-up, stable, decay: 1, and in the last part of the run a line down (Hägele et al., arXiv 2405.18392).

    Args:
        num_steps: steps of the run, warm-up included.
        warmup_steps: steps over which the factor first rises from 0 to 1.
        decay_fraction: part of the run over which the factor falls.
        floor: factor at the end.
    """
    decay_steps = round(decay_fraction * num_steps)
    stable_steps = max(num_steps - warmup_steps - decay_steps, 0)
    return warm_up(warmup_steps, then=joined([constant(), linear(decay_steps, floor=floor)], [stable_steps]))


def one_cycle(num_steps: int, *, warmup_fraction: float = 0.3, start: float = 0.04, floor: float = 4e-6) -> Schedule:
    """Half a cosine up from `start` to 1, half a cosine down to `floor` (Smith and Topin, arXiv 1708.07120).

    Args:
        num_steps: steps of the run.
        warmup_fraction: part of the run over which the factor rises.
        start: factor at the first step.
        floor: factor at the end.
    """
    rise_steps = round(warmup_fraction * num_steps)
    rise = cosine(rise_steps, floor=start)
    # The way up is the way down, backwards.
    return joined([lambda step: rise(rise_steps - step), cosine(num_steps - rise_steps, floor=floor)], [rise_steps])


def restarts(
    num_steps: int, *, warmup_steps: int = 0, cycles: int = 3, growth: float = 2.0, floor: float = 0.0
) -> Schedule:
    """SGDR: cosines from 1 down to `floor`, one after the other (Loshchilov and Hutter, arXiv 1608.03983, section 3).

    Args:
        num_steps: steps of the run, warm-up included.
        warmup_steps: steps over which the factor first rises from 0 to 1.
        cycles: how many cosines there are.
        growth: length of each cosine over that of the one before.
        floor: factor at the end of each.

    Raises:
        InputError: `cycles` is below 1, or `growth` is not above 0.
    """
    if cycles < 1 or not growth > 0:
        raise InputError(f"{cycles} cycles with a growth of {growth}; there must be 1 or more, and a growth above 0")
    lengths = [growth**cycle for cycle in range(cycles)]
    ends = [round((num_steps - warmup_steps) * sum(lengths[: i + 1]) / sum(lengths)) for i in range(cycles)]
    cosines = [cosine(end - start, floor=floor) for start, end in zip([0, *ends], ends, strict=False)]
    return warm_up(warmup_steps, then=joined(cosines, ends[:-1]))


def warm_up(warmup_steps: int, *, then: Schedule) -> Schedule:
    """Rise from 0 to 1 in a straight line, then go on with `then`, which counts from 0 again."""
    if warmup_steps == 0:
        return then
    return joined([lambda step: _fraction(step, warmup_steps), then], boundaries=[warmup_steps])


def joined(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Follow `schedules` in turn, changing over at `boundaries` (one fewer); each counts from 0 at its own start."""

    def schedule(step: Tensor) -> Tensor:
        factor = schedules[0](step)
        for boundary, later in zip(boundaries, schedules[1:], strict=True):
            factor = torch.where(step < boundary, factor, later(step - boundary))
        return factor

    return schedule


def _fraction(step: Tensor, num_steps: int) -> Tensor:
    """step / num_steps, held within [0, 1]."""
    return (step.to(torch.float64) / max(num_steps, 1)).clamp(0, 1)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "polynomial": polynomial,
    "exponential": exponential,
    "multi-step": multi_step,
    "wsd": wsd,
    "one-cycle": one_cycle,
    "restarts": restarts,
}
