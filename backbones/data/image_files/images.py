"""Image files as tensors. The only importer of torchcodec and Pillow."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.data.source import Color, DataInfo
from backbones.errors import InputError

MAX_PIXELS = 178_956_970
"""More of them are refused before they are decoded: small files can hold images that fill the memory."""

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
"""File suffixes of images."""


class BadImage(ValueError):
    """A file is not an image, or is damaged; the message is the reason."""


def reason_of(error: Exception) -> str:
    """Why a file could not be read or decoded, in a few words."""
    return str(getattr(error, "strerror", None) or error)


def decode(content: bytes, *, channels: int, background: Color) -> Tensor:
    """The image in the bytes of a file, [C, H, W] uint8.

    It is turned as its EXIF orientation says, 12 and 16 bits are scaled to 8, what is transparent shows the background,
    and of an animation it is the first frame. JPEG and PNG are decoded by torchcodec, all else by Pillow.

    Args:
        content: of the file.
        channels: 1 (grey) or 3 (red, green and blue).
        background: red, green and blue in [0, 255].

    Raises:
        BadImage: these are not bytes of an image, or not all of them.
    """
    image = _decode_fast(content)
    if image is None:
        image = _decode_any(content)
    if image.shape[0] == 4:
        image = _compose(image, background)
    return _to_grey(image) if image.shape[0] > channels else image


def _decode_fast(content: bytes) -> Tensor | None:
    """A JPEG or a PNG, [3 or 4, H, W] uint8; None for what torchcodec does not know or refuses."""
    codec = _torchcodec()
    is_jpeg, is_png = content[:3] == b"\xff\xd8\xff", content[:8] == b"\x89PNG\r\n\x1a\n"
    if codec is None or not (is_jpeg or is_png):
        return None
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    try:
        if is_jpeg:
            segments = list(_jpeg_segments(content))
            _check_pixels(_jpeg_pixels(segments))
            if _is_turned_by_others(segments):
                return None
            return codec.decode_jpeg(data, mode="RGB")  # its own grey differs by up to 3 levels from that of Pillow
        _check_pixels(int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big"))
        if any(each in content for each in (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")):  # maybe turned
            return None
        has_alpha = content[25:26] in (b"\x04", b"\x06") or b"tRNS" in content
        return codec.decode_png(data, mode="RGB_ALPHA" if has_alpha else "RGB")
    except RuntimeError:
        return None


@cache
def _torchcodec() -> Any:
    """torchcodec's decoders; None where they do not load beside this torch."""
    try:
        import torchcodec.decoders  # late: --help need not wait for it

        return torchcodec.decoders
    except (ImportError, OSError, RuntimeError):
        return None


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment of a JPEG, up to the scan (ITU-T T.81, B.1.1)."""
    at = 2
    while content[at : at + 1] == b"\xff" and at + 4 <= len(content) and content[at + 1] != 0xDA:
        if content[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        yield content[at + 1], content[at + 4 : at + 2 + length]
        at += 2 + length


def _jpeg_pixels(segments: Sequence[tuple[int, bytes]]) -> int:
    """Height times width in the frame header of a JPEG (ITU-T T.81, B.2.2); 0 if there is none."""
    for marker, frame in segments:
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # which are not frame headers
            return int.from_bytes(frame[1:3], "big") * int.from_bytes(frame[3:5], "big")
    return 0


def _is_turned_by_others(segments: Sequence[tuple[int, bytes]]) -> bool:
    """Whether a JPEG may have an orientation that torchcodec does not find: it reads the first APP1 as EXIF."""
    about = [content for marker, content in segments if marker == 0xE1]
    is_exif = [content.startswith(b"Exif\0\0") for content in about]
    return (any(is_exif) and not is_exif[0]) or any(re.search(rb"tiff:Orientation(=.|>)[2-8]", each) for each in about)


def _check_pixels(pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise BadImage(f"it has {pixels:,} pixels, and {MAX_PIXELS:,} are the most")


def _decode_any(content: bytes) -> Tensor:
    """An image of any format that Pillow knows, [3 or 4, H, W] uint8."""
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = None  # checked here
    try:
        with Image.open(io.BytesIO(content)) as file:
            _check_pixels(file.width * file.height)
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                image = Image.fromarray(_to_8_bits(np.asarray(image), getattr(file, "tag_v2", {})))
            elif image.mode == "F":
                raise BadImage("its pixels are floating-point numbers")
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # of some thirty decoders, each with exceptions of its own
        raise BadImage("it is not an image, or is damaged" if content else "it is empty") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def decoder_versions() -> list[str | None]:
    """Of Pillow and torchcodec, None where that does not load: others may read other files."""
    return [version("pillow"), version("torchcodec") if _torchcodec() else None]


def _to_8_bits(image: np.ndarray, tags: Mapping[int, Any]) -> np.ndarray:
    """From 16 bits, or the 12 of a TIFF; `tags` are those of a TIFF, which Pillow does not apply to such pixels."""
    if image.min() < 0 or image.max() > 65535:
        raise BadImage("its pixels have more than 16 bits")
    largest = 4095 if tags.get(258) == (12,) else 65535  # BitsPerSample
    scaled = (image.astype(np.float32) * (255 / largest)).round().astype(np.uint8)
    return 255 - scaled if tags.get(262) == 0 else scaled  # PhotometricInterpretation: 0 is white


def _compose(image: Tensor, background: Color) -> Tensor:
    """Red, green, blue and alpha [4, H, W] over a color, [3, H, W]."""
    color, alpha = image[:3].to(torch.int32), image[3:].to(torch.int32)
    behind = torch.tensor(background, dtype=torch.int32)[:, None, None]
    return ((color * alpha + behind * (255 - alpha) + 127) // 255).to(torch.uint8)


def _to_grey(image: Tensor) -> Tensor:
    """Luma of ITU-R 601-2 in Pillow's integer arithmetic, [3, H, W] -> [1, H, W]."""
    red, green, blue = image.to(torch.int32)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[None]


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """[C, h, w] uint8 -> [C, height, width], bilinear, averaging over the pixels that become one."""
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def center_crop(image: Tensor, height: int, width: int, share: float) -> Tensor:
    """The middle of [C, h, w] uint8, [C, height, width], which is `share` of the image in the side that limits it."""
    scale = max(height / image.shape[1], width / image.shape[2]) / share
    if image.shape[1] * image.shape[2] * scale**2 > MAX_PIXELS:  # a long and thin one: first its middle alone
        for dim, length in ((1, height), (2, width)):
            needed = min(math.ceil(length / scale) + 2, image.shape[dim])
            image = image.narrow(dim, (image.shape[dim] - needed) // 2, needed)
    resized = resize(image, max(round(image.shape[1] * scale), height), max(round(image.shape[2] * scale), width))
    top, left = (resized.shape[1] - height) // 2, (resized.shape[2] - width) // 2
    return resized[:, top : top + height, left : left + width]


def read_images(paths: Sequence[Path], info: DataInfo, *, may_resize: bool) -> Tensor:
    """Image files as the model of a run wants them, [N, C, H, W] uint8: as its own images were read.

    Args:
        paths: files of any format that `decode` knows.
        info: of the data set of the run.
        may_resize: where those of the run were not scaled, scale images of another size to H x W, not refuse them.

    Raises:
        InputError: a file is absent, no image, or of another size.
    """
    channels, height, width = info.image_shape
    if channels not in (1, 3):
        raise InputError(f"the model takes images of {channels} channels, and image files are read with 1 or 3")
    images = []
    for path in paths:
        try:
            image = decode(path.read_bytes(), channels=channels, background=info.background)
        except (OSError, BadImage) as error:
            raise InputError(f"{path} cannot be read: {reason_of(error)}") from error
        if info.center is not None:
            image = center_crop(image, height, width, info.center)
        elif may_resize:
            image = resize(image, height, width)
        elif image.shape[1:] != (height, width):
            raise InputError(
                f"{path} has {image.shape[2]}x{image.shape[1]} pixels and the model takes {width}x{height}; scale it "
                "with --resize"
            )
        images.append(image)
    return torch.stack(images)
