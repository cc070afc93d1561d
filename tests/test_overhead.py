import pytest

from backbones.models import MODELS
from backbones.overhead import measure_overhead


@pytest.mark.parametrize(
    ("name", "num_params", "giga_macs"),
    [("resnet18", 11_173_962, 0.5567), ("vit-tiny", 5_362_762, 0.3666)],  # the reference, measured
)
def test_cifar_models_cost_what_the_reference_does(name: str, num_params: int, giga_macs: float) -> None:
    overhead = measure_overhead(MODELS[name]((3, 32, 32), 10), (3, 32, 32))
    assert overhead.num_params == num_params
    assert overhead.macs / 1e9 == pytest.approx(giga_macs, rel=0.01)
