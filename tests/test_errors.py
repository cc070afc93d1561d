import pytest

from backbones.errors import InputError, check_known


def test_unknown_names_offer_the_nearest() -> None:
    assert check_known("model", "vit", ["vit", "resnet"]) == "vit"
    with pytest.raises(InputError, match=r"unknown model 'vitt'; did you mean vit\? There are: vit, resnet"):
        check_known("model", "vitt", ["vit", "resnet"])
    with pytest.raises(InputError, match="unknown model 'zzz'; There are: vit, resnet"):
        check_known("model", "zzz", ["vit", "resnet"])
