import torch
import torchvision.transforms.v2.functional as oracle
from helpers.batches import make_batch

from backbones.augment import make_normalize
from backbones.types import CPU


def test_normalize_is_torchvisions_in_channels_last_memory() -> None:
    images = make_batch(4).images
    mean, std = (100.0, 120.0, 140.0), (50.0, 60.0, 70.0)
    normalized = make_normalize(mean, std, CPU)(images)
    torch.testing.assert_close(normalized, oracle.normalize(images.float(), list(mean), list(std)))
    assert normalized.is_contiguous(memory_format=torch.channels_last)
