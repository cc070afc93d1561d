from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree


class Pair(NamedTuple):
    left: Tensor
    right: dict[str, Tensor]


def make_pair() -> Pair:
    return Pair(torch.tensor([3.0]), {"b.weight": torch.tensor([[4.0, 0.0]]), "a": torch.tensor([12.0])})


def test_named_leaves_are_paths_in_the_order_of_leaves() -> None:
    named = tree.named_leaves({"state": (make_pair(),)})
    assert list(named) == ["state/0/left", "state/0/right/a", "state/0/right/b.weight"]
    assert all(a is b for a, b in zip(named.values(), tree.leaves(named), strict=True))


def test_map_keeps_the_order_of_dicts() -> None:
    doubled = tree.map(lambda leaf: 2 * leaf, make_pair())
    assert list(doubled.right) == ["b.weight", "a"]
    assert doubled.left.item() == 6


def test_global_norm_is_that_of_one_vector() -> None:
    assert tree.global_norm(make_pair()).item() == 13.0


def test_global_norm_of_a_batch_of_trees_and_its_derivatives() -> None:
    batch = {"a": torch.randn(4, 5, 6), "b": torch.randn(4, 3), "shared": torch.randn(7)}
    norms = torch.func.vmap(tree.global_norm, in_dims=({"a": 0, "b": 0, "shared": None},))(batch)
    each = [tree.global_norm({**batch, "a": batch["a"][i], "b": batch["b"][i]}) for i in range(4)]
    torch.testing.assert_close(norms, torch.stack(each))
    direction = tree.map(torch.ones_like, batch)
    _, slope = torch.func.jvp(tree.global_norm, (batch,), (direction,))
    gradient = torch.func.grad(tree.global_norm)(batch)
    torch.testing.assert_close(slope, torch.stack([leaf.sum() for leaf in tree.leaves(gradient)]).sum())


def test_find_gives_every_node_that_matches() -> None:
    nested = ({"x": make_pair()}, [make_pair()], torch.zeros(()))
    assert tree.find(nested, lambda node: isinstance(node, Pair)) == [nested[0]["x"], nested[1][0]]


def test_map_to_several_gives_a_tree_for_each_result() -> None:
    doubled, shapes = tree.map_to_several(lambda a, b: (a + b, a.shape), make_pair(), make_pair())
    assert isinstance(doubled, Pair) and doubled.left.item() == 6 and list(doubled.right) == ["b.weight", "a"]
    assert shapes.right["b.weight"] == (1, 2)


def test_where_takes_one_tree_or_the_other() -> None:
    yes, no = make_pair(), tree.zeros_like(make_pair())
    assert tree.sha256(tree.where(torch.tensor(True), yes, no)) == tree.sha256(yes)
    assert tree.sha256(tree.where(torch.tensor(False), yes, no)) == tree.sha256(no)


def test_replace_fields_of_every_named_tuple() -> None:
    nested = ({"x": make_pair()}, [make_pair(), torch.tensor(1)], None)
    replaced = tree.replace_fields(nested, {"left": torch.tensor(5)})
    assert replaced[0]["x"].left == 5 and replaced[1][0].left == 5 and replaced[1][1] == 1
    assert list(replaced[0]["x"].right) == ["b.weight", "a"] and nested[0]["x"].left == 3


def test_replace_fields_in_dicts_of_scalars_only() -> None:
    scalars, params = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, make_pair().right | {"a": torch.tensor(1.0)}
    replaced = tree.replace_fields((scalars, params), {"a": torch.tensor(5.0)})
    assert replaced[0] == {"a": 5, "b": 2} and replaced[1]["a"] == 1 and scalars["a"] == 1


def test_sha256_sees_one_bit_one_name_one_shape_one_dtype() -> None:
    base = {"a": torch.arange(4, dtype=torch.float32)}
    bits = base["a"].clone()
    bits.view(torch.int32)[2] ^= 1
    others = [{"a": bits}, {"b": base["a"]}, {"a": base["a"].reshape(2, 2)}, {"a": base["a"].to(torch.float64)}]
    assert tree.sha256({"a": base["a"].clone()}) == tree.sha256(base)
    assert len({tree.sha256(each) for each in [base, *others]}) == 5


def test_sha256_does_not_see_the_memory_format() -> None:
    kernel = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert tree.sha256({"a": kernel}) == tree.sha256({"a": kernel.to(memory_format=torch.channels_last)})
    assert tree.sha256({"a": torch.ones((), dtype=torch.bfloat16)})


def test_unstack_undoes_stack() -> None:
    trees = [{"a": torch.tensor(float(i)), "b": (torch.arange(3) + i,)} for i in range(4)]
    stacked = tree.stack(trees)
    assert stacked["a"].tolist() == [0, 1, 2, 3] and stacked["b"][0].shape == (4, 3)
    assert [each["b"][0].tolist() for each in tree.unstack(stacked)] == [[i, i + 1, i + 2] for i in range(4)]
