"""Learning-rate schedules: functions from the step to a factor on the learning rate, usually in [0, 1].

The step is a 0-D int64 tensor (updates so far) and the factor a 0-D float64 tensor: a schedule is part of the compiled
step. `num_steps` is the length of the run, warm-up included; the keyword-only parameters are the fields
`--schedule.FIELD`. `python -m backbones schedule --help` plots them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import pi
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import Doc

import backbones.distributed as distributed
from backbones.ranges import Count, NonNegative, NonNegativeInt, Positive, Range, checked

Schedule = Callable[[Tensor], Tensor]
"""`schedule(step) -> factor`."""

Fraction = Range("[0, 1]")

WarmupSteps = Annotated[NonNegativeInt, Doc("steps of the linear warm-up from 0 to 1")]
Floor = Annotated[NonNegative, Doc("factor at the end")]


@checked
def constant(num_steps: int = 0, *, warmup_steps: WarmupSteps = 0) -> Schedule:
    """1, after the warm-up, whatever `num_steps` is."""
    return warm_up(warmup_steps, then=lambda step: torch.ones_like(step, dtype=torch.float64), before=num_steps)


@checked
def linear(num_steps: int, *, warmup_steps: WarmupSteps = 0, floor: Floor = 0.0) -> Schedule:
    """A straight line from 1 to `floor`."""
    return _decay(num_steps, warmup_steps, lambda x: 1 + (floor - 1) * x)


@checked
def cosine(num_steps: int, *, warmup_steps: WarmupSteps = 0, floor: Floor = 0.0) -> Schedule:
    """Half a cosine from 1 to `floor` (Loshchilov and Hutter, arXiv 1608.03983, equation 5)."""
    return _decay(num_steps, warmup_steps, lambda x: floor + (1 - floor) * (1 + torch.cos(pi * x)) / 2)


@checked
def polynomial(
    num_steps: int,
    *,
    warmup_steps: WarmupSteps = 0,
    power: Annotated[Positive, Doc("exponent of the remaining fraction of the run; 1 is a straight line")] = 2.0,
    floor: Floor = 0.0,
) -> Schedule:
    """A power of the straight line from 1 to 0, scaled to end in `floor` (as in LARS, arXiv 1708.03888)."""
    return _decay(num_steps, warmup_steps, lambda x: floor + (1 - floor) * (1 - x) ** power)


@checked
def exponential(
    num_steps: int, *, warmup_steps: WarmupSteps = 0, floor: Annotated[Positive, Doc("factor at the end")] = 0.01
) -> Schedule:
    """Exponential decay from 1 to `floor`."""
    return _decay(num_steps, warmup_steps, lambda x: floor**x)


@checked
def multi_step(
    num_steps: int,
    *,
    warmup_steps: WarmupSteps = 0,
    milestones: Annotated[tuple[float, ...], Fraction, Doc("when to drop, as fractions of the run")] = (0.5, 0.75),
    factor: Annotated[NonNegative, Doc("what each drop multiplies by")] = 0.1,
) -> Schedule:
    """Multiply by `factor` at each milestone (He et al., arXiv 1512.03385, section 4.2)."""
    boundaries = [round(milestone * num_steps) - warmup_steps for milestone in milestones]

    def decay(step: Tensor) -> Tensor:
        num_drops = sum((step >= boundary for boundary in boundaries), start=torch.zeros_like(step))
        return factor ** num_drops.to(torch.float64)

    return warm_up(warmup_steps, then=decay, before=round(min(milestones, default=1) * num_steps))


@checked
def wsd(
    num_steps: int,
    *,
    warmup_steps: WarmupSteps = 0,
    decay_fraction: Annotated[float, Fraction, Doc("part of the run in which the factor decays")] = 0.2,
    floor: Floor = 0.0,
) -> Schedule:
    """Warm-up, stable, decay: 1, then a straight line to `floor` (Hägele et al., arXiv 2405.18392)."""
    decay_steps = min(round(decay_fraction * num_steps), max(num_steps - warmup_steps, 0))
    stable_steps = max(num_steps - warmup_steps - decay_steps, 0)
    then = join_schedules([constant(), linear(decay_steps, floor=floor)], [stable_steps])
    return warm_up(warmup_steps, then=then, before=num_steps)


@checked
def one_cycle(
    num_steps: int,
    *,
    warmup_fraction: Annotated[float, Fraction, Doc("part of the run in which the factor rises")] = 0.3,
    start: Annotated[NonNegative, Doc("factor at the first step")] = 0.04,
    floor: Floor = 4e-6,
) -> Schedule:
    """Half a cosine from `start` to 1, then half a cosine to `floor` (Smith and Topin, arXiv 1708.07120)."""
    return _rise_and_fall(cosine, num_steps, warmup_fraction, start, floor)


@checked
def triangle(
    num_steps: int,
    *,
    peak: Annotated[float, Fraction, Doc("when the factor is 1, as a fraction of the run")] = 0.23,
    start: Annotated[NonNegative, Doc("factor at the first step")] = 0.2,
    floor: Floor = 0.07,
) -> Schedule:
    """A straight line from `start` to 1, then one to `floor` (as in airbench, arXiv 2404.00498)."""
    return _rise_and_fall(linear, num_steps, peak, start, floor)


@checked
def restarts(
    num_steps: int,
    *,
    warmup_steps: WarmupSteps = 0,
    cycles: Annotated[Count, Doc("number of cosines")] = 3,
    growth: Annotated[Positive, Doc("length of each cosine, relative to the one before")] = 2.0,
    floor: Annotated[NonNegative, Doc("factor at the end of each cosine")] = 0.0,
) -> Schedule:
    """SGDR: cosines from 1 to `floor`, one after another (Loshchilov and Hutter, arXiv 1608.03983, section 3)."""
    lengths = [growth ** (cycle - (cycles - 1 if growth > 1 else 0)) for cycle in range(cycles)]  # of the longest
    ends = [round((num_steps - warmup_steps) * sum(lengths[: i + 1]) / sum(lengths)) for i in range(cycles)]
    cosines = [cosine(end - start, floor=floor) for start, end in pairwise([0, *ends])]
    return warm_up(warmup_steps, then=join_schedules(cosines, boundaries=ends[:-1]), before=num_steps)


def warm_up(warmup_steps: int, *, then: Schedule, before: int = 0) -> Schedule:
    """A straight line from 0 to 1, then the schedule `then`, which counts its steps from 0.

    It warns if the line does not end before the step `before`, unless that is 0.
    """
    if warmup_steps == 0:
        return then
    if 0 < before <= warmup_steps:
        distributed.warn0_once(
            f"the learning rate never reaches its full value: the warm-up takes {warmup_steps} steps, and the decay or "
            f"the end of the run comes at step {before}"
        )
    return join_schedules([lambda step: _fraction(step, warmup_steps), then], boundaries=[warmup_steps])


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Schedules one after another: the next one starts at each boundary, and counts its steps from 0."""

    def schedule(step: Tensor) -> Tensor:
        factor = schedules[0](step)
        for boundary, later in zip(boundaries, schedules[1:], strict=True):
            factor = torch.where(step < boundary, factor, later(step - boundary))
        return factor

    return schedule


def _decay(num_steps: int, warmup_steps: int, factor: Callable[[Tensor], Tensor]) -> Schedule:
    """A warm-up, then `factor(x)`, where x goes from 0 to 1 in the rest of the run."""
    return warm_up(warmup_steps, then=lambda step: factor(_fraction(step, num_steps - warmup_steps)), before=num_steps)


def _rise_and_fall(fall: Callable[..., Schedule], num_steps: int, peak: float, start: float, floor: float) -> Schedule:
    """A schedule `fall` backwards from `start` to 1, in the fraction `peak` of the run, then one to `floor`."""
    rise_steps = round(peak * num_steps)
    reversed_rise, then = fall(rise_steps, floor=start), fall(num_steps - rise_steps, floor=floor)
    return join_schedules([lambda step: reversed_rise(rise_steps - step), then], boundaries=[rise_steps])


def _fraction(step: Tensor, num_steps: int) -> Tensor:
    """step / num_steps, clamped to [0, 1]."""
    return (step.to(torch.float64) / max(num_steps, 1)).clamp(0, 1)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    schedule.__name__.replace("_", "-"): schedule
    for schedule in (constant, linear, cosine, polynomial, exponential, multi_step, wsd, one_cycle, triangle, restarts)
}
