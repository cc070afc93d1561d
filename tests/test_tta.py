import pytest
import torch
from torch import Tensor

from backbones.tta import average_views


def apply(images: Tensor) -> Tensor:
    """Logits that depend on where each pixel is."""
    position = torch.arange(images[0].numel(), dtype=images.dtype).view_as(images[0])
    return torch.stack(
        [(images * position.sin()).sum((1, 2, 3)), (images * position.cos()).sum((1, 2, 3))], dim=1
    ).exp()


IMAGES = torch.rand(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_without_it_the_forward_pass_is_the_prediction() -> None:
    assert torch.equal(average_views(apply, IMAGES, "none"), apply(IMAGES))


def test_flip_is_the_mean_over_an_image_and_its_mirror_image() -> None:
    mirrored = IMAGES[..., [4, 3, 2, 1, 0]]
    torch.testing.assert_close(average_views(apply, IMAGES, "flip"), (apply(IMAGES) + apply(mirrored)) / 2)


def test_the_mean_is_taken_in_float32() -> None:
    """In bfloat16 it would be 10, as is that of the other class."""
    views = iter([torch.tensor([[10.0, 10.0]]), torch.tensor([[10.0, 10.0625]])])
    mean = average_views(lambda images: next(views).bfloat16(), IMAGES, "flip")
    assert mean.tolist() == [[10.0, 10.03125]]


def test_flip_and_shift_are_six_views() -> None:
    """A quarter for each of two views, an eighth for each of four; the border repeats what is beside it inside."""
    up_left = IMAGES[:, :, [1, 2, 3, 2]][..., [1, 2, 3, 4, 3]]
    down_right = IMAGES[:, :, [1, 0, 1, 2]][..., [1, 0, 1, 2, 3]]
    expected = sum(
        weight * apply(images) + weight * apply(images[..., [4, 3, 2, 1, 0]])
        for weight, images in ((0.25, IMAGES), (0.125, up_left), (0.125, down_right))
    )
    torch.testing.assert_close(average_views(apply, IMAGES, "flip+shift"), expected)


@pytest.mark.parametrize("tta", ["flip", "flip+shift"])
def test_an_image_that_is_the_same_in_all_views_has_its_own_logits(tta: str) -> None:
    grey = torch.full((2, 2, 4, 5), 0.3, dtype=torch.float64)
    torch.testing.assert_close(average_views(apply, grey, tta), apply(grey))
