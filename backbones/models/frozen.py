"""Parameters that are not trained, and those that learn more slowly."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import get_args

import torch
from torch import Tensor, nn

from backbones.errors import InputError, shorten
from backbones.models.base import Model, is_of_module, make_apply
from backbones.types import ModelState, Params, Part, Roles


def select(roles: Roles, patterns: Sequence[str], option: str) -> set[str]:
    """Names of the parameters that match one of the patterns.

    Args:
        roles: those of a model.
        patterns: a part (stem, trunk or head), the name of a module or of a parameter, or such a name with `*` and `?`.
        option: where the patterns come from, for the message.

    Raises:
        InputError: a pattern matches none.
    """
    selected = set()
    for pattern in patterns:
        found = {
            name
            for name, role in roles.items()
            if role.part == pattern or fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
        }
        if not found:
            modules = list(dict.fromkeys(name.partition(".")[0] for name in roles))
            raise InputError(
                f"--{option} {pattern} means no parameter; give {', '.join(get_args(Part))}, or names of modules or "
                f"parameters, with * for any letters. The modules are: {shorten(modules)}"
            )
        selected |= found
    return selected


def freeze(model: Model, names: Collection[str]) -> Model:
    """The model with some of its parameters as leaves of `model_state`: they get no gradient and no update.

    A norm whose parameters are all frozen uses its running statistics in training too, and does not update them. A norm
    without parameters is frozen with the layer before it.

    Args:
        model: what to freeze parts of.
        names: of parameters.

    Raises:
        InputError: a name is unknown; no parameter is left; or a norm is to be frozen, and `apply` is more than the
            module, which then cannot be changed.
    """
    if not names:
        return model
    every = dict(model.skeleton.named_parameters(remove_duplicate=False))
    if unknown := set(names) - every.keys():
        raise InputError(f"{shorten(sorted(unknown))}: no such parameters; wanted full names, as `select` finds them")
    first_names = {id(leaf): name for name, leaf in model.skeleton.named_parameters()}
    names = {first_names[id(every[name])] for name in names}  # a parameter that is tied has several
    trained = model.roles.keys() - set(names)
    if not trained:
        raise InputError("all parameters are frozen, and nothing is left to train; freeze less")
    trained_ids = {id(leaf) for name, leaf in model.skeleton.named_parameters() if name in trained}
    norms: list[str] = []
    latest: set[int] = set()  # ids of the parameters of the latest layer that has any
    for name, module in model.skeleton.named_modules():
        latest = {id(leaf) for leaf in module.parameters(recurse=False) if leaf.requires_grad} or latest
        with_statistics = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        if with_statistics and latest and not trained_ids & latest:
            norms.append(name)
    if norms and not is_of_module(model.apply):
        raise InputError(
            f"cannot freeze the norm {norms[0]} of a model with an `apply` of its own; freeze it before its `apply` is "
            "replaced, as by with_autocast"
        )

    def init(generator: torch.Generator) -> tuple[Params, ModelState]:
        return split(*model.init(generator))

    def split(params: Params, model_state: ModelState) -> tuple[Params, ModelState]:
        frozen = {name: leaf for name, leaf in params.items() if name in names}
        return {name: leaf for name, leaf in params.items() if name not in names}, {**model_state, **frozen}

    def init_from_images(params: Params, model_state: ModelState, images: Tensor) -> tuple[Params, ModelState]:
        assert model.init_from_images is not None
        frozen = {name: leaf for name, leaf in model_state.items() if name in names}
        rest = {name: leaf for name, leaf in model_state.items() if name not in names}
        return split(*model.init_from_images({**params, **frozen}, rest, images))

    return model._replace(
        init=init,
        apply=make_apply(model.skeleton, in_evaluation=norms) if norms else model.apply,
        roles={name: role for name, role in model.roles.items() if name not in names},
        init_from_images=init_from_images if model.init_from_images is not None else None,
    )


def relative_rates(roles: Roles, *, layer_decay: float = 1.0, trunk_lr: float = 1.0) -> dict[str, float]:
    """Learning rate of each parameter, relative to that of the head.

    Args:
        roles: those of a model before any of it is frozen, so with its head.
        layer_decay: factor for each layer below the head (Bao et al., "BEiT", arXiv 2106.08254, appendix H).
        trunk_lr: factor for all but the head.
    """
    top = max(role.depth for role in roles.values())
    return {
        name: layer_decay ** (top - role.depth) * (1.0 if role.part == "head" else trunk_lr)
        for name, role in roles.items()
    }
