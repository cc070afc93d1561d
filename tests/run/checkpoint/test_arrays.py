import pytest
from helpers.states import make_state, zeros_like

import backbones.tree as tree
from backbones import optim
from backbones.errors import InputError
from backbones.run.checkpoint import load_arrays, to_arrays


def test_arrays_hold_every_bit_of_every_dtype() -> None:
    state = make_state()
    arrays = to_arrays(state)
    assert arrays["model_state/half"].dtype.name == "bfloat16" and arrays["step"] == 7
    restored = load_arrays(zeros_like(state), arrays)
    assert tree.sha256(restored) == tree.sha256(state)
    assert restored.params["patch_embed.weight"].stride() == state.params["patch_embed.weight"].stride()


def test_arrays_are_a_snapshot() -> None:
    state = make_state()
    arrays = to_arrays(state)
    state.params["head.bias"].fill_(5)
    assert not arrays["params/head.bias"].any()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 64}, r"params/blocks\.0\.attn\.proj\.bias is float32 \[32\], expected float32 \[64\]"),
        ({"optimizer": optim.sgd()}, r"opt_state/1/decay is missing, expected float64 \[\]"),
    ],
)
def test_a_checkpoint_of_another_model_or_optimizer_is_refused_completely(other: dict, message: str) -> None:
    like = make_state(1, **other)
    before = tree.sha256(like)
    with pytest.raises(InputError, match=message):
        load_arrays(like, to_arrays(make_state()))
    assert tree.sha256(like) == before
