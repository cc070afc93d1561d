import pytest
import torch
from descent import Descent
from torch import Tensor

import backbones.tree as tree
from backbones import optim
from backbones.donate import donating
from backbones.types import Params


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_an_update_is_the_same_to_the_last_bit(name: str, descent: Descent) -> None:
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.OPTIMIZERS[name](), optim.ema_params(0.9))
    update = optim.make_update(optimizer)
    donated = donating(update, donate_argnums=(1, 2))
    ends = []
    for function in (update, donated):
        params = tree.map(torch.clone, descent.params)
        opt_state = optimizer.init(params)
        for grads in descent.grads[:3]:
            before = tree.sha256(grads)
            params, opt_state, norm = function(grads, opt_state, params)
            assert tree.sha256(grads) == before
        ends.append(tree.sha256((params, opt_state, norm)))
        assert list(params) == list(descent.params)
    assert ends[0] == ends[1]


@pytest.mark.parametrize("make", [optim.sgd, optim.adamw])
def test_parameters_and_state_keep_their_memory(make, descent: Descent) -> None:
    update = donating(optim.make_update(make()), donate_argnums=(1, 2))
    params = tree.map(torch.clone, descent.params)
    opt_state = make().init(params)
    for grads in descent.grads[:2]:
        addresses = [leaf.data_ptr() for leaf in tree.leaves((params, opt_state)) if leaf.ndim > 0]
        params, opt_state, _ = update(grads, opt_state, params)
    assert [leaf.data_ptr() for leaf in tree.leaves((params, opt_state)) if leaf.ndim > 0] == addresses


def double_and_keep(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    c = a * b
    return c, a + 1, a


def of_a_view(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    row = a[0]
    c = a * 2
    return c, row + b[0]


def in_place_inside(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    c = a * b
    d = c.add_(1).sqrt()
    return d, c


def broadcast_and_several(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    left, right = torch.unbind(b)
    mean = b.mean(dim=0, keepdim=True)
    return a * mean, left * 2, right.exp() + left, b - mean


@pytest.mark.parametrize("function", [double_and_keep, of_a_view, in_place_inside, broadcast_and_several])
def test_nothing_is_written_over_that_is_still_read(function) -> None:
    generator = torch.Generator().manual_seed(0)
    donated = donating(function, donate_argnums=(0, 1))
    for _ in range(2):
        a, b = torch.rand(2, 2, 4, generator=generator).unbind()
        wanted = function(a.clone(), b.clone())
        for got, leaf in zip(donated(a.clone(), b.clone()), wanted, strict=True):
            assert torch.equal(got, leaf)


def test_what_is_not_donated_stays(descent: Descent) -> None:
    def sums(a: Params, b: Params) -> Params:
        return tree.map(lambda x, y: (x * y).exp() + x, a, b)

    a, b = descent.params, tree.map(torch.clone, descent.grads[0])
    before = tree.sha256(a)
    wanted = tree.sha256(sums(a, b))
    assert tree.sha256(donating(sums, donate_argnums=(1,))(a, b)) == wanted
    assert tree.sha256(a) == before
