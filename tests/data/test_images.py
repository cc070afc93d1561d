import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as oracle
from helpers.trees import encoded, random_image
from PIL import Image

from backbones.data import DataInfo
from backbones.data.image_files import images as images_module
from backbones.data.image_files.images import BadImage, center_crop, decode, read_images, resize
from backbones.errors import InputError

BLACK = (0, 0, 0)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).reshape(*image.shape[:2], -1).permute(2, 0, 1)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


RGB = Image.fromarray(random_image(0, 6, 8))
GREY = RGB.convert("L")
ORIENTATION = Image.Exif()
ORIENTATION[0x0112] = 6  # turned by 90 degrees to the right, to be seen
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_xmp(jpeg: bytes, orientation: int) -> bytes:
    """With a segment before all others."""
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + XMP % orientation
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + jpeg[2:]


def with_fill_bytes(jpeg: bytes) -> bytes:
    """With 0xFF before the first marker, of which there may be any number (ITU-T T.81, B.1.1.2)."""
    return jpeg[:2] + b"\xff\xff" + jpeg[2:]


def with_late_exif(png: bytes) -> bytes:
    """With the orientation after the pixels."""
    end = png.index(b"IEND") - 4
    return png[:end] + png_chunk(b"eXIf", ORIENTATION.tobytes().removeprefix(b"Exif\0\0")) + png[end:]


FILES = {
    "jpeg": saved(RGB, "JPEG"),
    "progressive jpeg": saved(RGB, "JPEG", progressive=True),
    "grey jpeg": saved(GREY, "JPEG"),
    "cmyk jpeg": saved(RGB.convert("CMYK"), "JPEG"),
    "turned jpeg": saved(RGB, "JPEG", exif=ORIENTATION),
    "turned png": saved(RGB, "PNG", exif=ORIENTATION),
    "jpeg turned by its second APP1": with_xmp(saved(RGB, "JPEG", exif=ORIENTATION), 1),
    "jpeg turned by XMP": with_xmp(saved(RGB, "JPEG"), 8),
    "jpeg turned by XMP, with fill bytes": with_fill_bytes(with_xmp(saved(RGB, "JPEG"), 8)),
    "png turned at its end": with_late_exif(saved(RGB, "PNG")),
    "png": saved(RGB, "PNG"),
    "grey png": saved(GREY, "PNG"),
    "palette png": saved(RGB.quantize(16), "PNG"),
    "1-bit png": saved(RGB.convert("1"), "PNG"),
    "gif": saved(RGB, "GIF"),
    "animated gif": saved(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]),
    "webp": saved(RGB, "WEBP", lossless=True),
    "animated webp": saved(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)], lossless=True),
    "bmp": saved(RGB, "BMP"),
    "tiff": saved(RGB, "TIFF"),
    "cmyk tiff": saved(RGB.convert("CMYK"), "TIFF"),
    "ppm": saved(RGB, "PPM"),
}


def as_pillow(content: bytes, mode: str) -> torch.Tensor:
    from PIL import ImageOps

    return to_tensor(np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert(mode)))


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_pillow_reads_them(name: str) -> None:
    image = decode(FILES[name], channels=3, background=BLACK)
    assert image.dtype == torch.uint8 and torch.equal(image, as_pillow(FILES[name], "RGB"))
    grey = decode(FILES[name], channels=1, background=BLACK).int()
    assert grey.shape[0] == 1 and torch.equal(grey, as_pillow(FILES[name], "L").int())


def test_what_torchcodec_refuses_goes_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [(name, channels) for name in FILES for channels in (1, 3)]
    with_torchcodec = [decode(FILES[name], channels=channels, background=BLACK) for name, channels in every]
    monkeypatch.setattr(images_module, "_torchcodec", lambda: None)
    for (name, channels), wanted in zip(every, with_torchcodec, strict=True):
        assert torch.equal(decode(FILES[name], channels=channels, background=BLACK), wanted), (name, channels)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_are_scaled(format: str) -> None:
    grey = np.array(GREY)
    content = saved(Image.fromarray(grey.astype(np.uint16) * 257), format)
    for channels in (1, 3):
        image = decode(content, channels=channels, background=BLACK)
        assert torch.equal(image, torch.from_numpy(grey).expand(channels, -1, -1))


def grey_tiff(levels: np.ndarray, bits: int, photometric: int) -> bytes:
    """Uncompressed, [H, W] integers; of 12 bits two pixels fill three bytes. `photometric` is 0 where 0 is white."""
    number = sum(int(level) << (bits * i) for i, level in enumerate(levels.flat[::-1]))
    pixels = levels.astype("<u2").tobytes() if bits == 16 else number.to_bytes(levels.size * bits // 8, "big")
    height, width = levels.shape
    tags = (256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (279, len(pixels))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return header + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 1), (16, 0)])
def test_levels_of_a_tiff_are_those_of_its_tags(bits: int, photometric: int) -> None:
    grey = np.array(GREY)
    levels = (grey if photometric else 255 - grey) * (2**bits - 1.0) / 255
    image = decode(grey_tiff(levels.round().astype(int), bits, photometric), channels=1, background=BLACK)
    assert torch.equal(image[0], torch.from_numpy(grey))


@pytest.mark.parametrize("background", [BLACK, (255, 255, 255), (10, 200, 30)])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_what_is_transparent_shows_the_background(format: str, background: tuple[int, int, int]) -> None:
    rgba = RGB.copy()
    rgba.putalpha(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5))
    image = decode(saved(rgba, format, lossless=True), channels=3, background=background)
    behind = Image.new("RGBA", rgba.size, background)
    expected = to_tensor(np.array(Image.alpha_composite(behind, rgba).convert("RGB")))
    assert (image.int() - expected.int()).abs().max() <= 1  # Pillow rounds in two steps


def test_transparent_palettes_and_greys() -> None:
    palette = saved(RGB.quantize(16), "PNG", transparency=0)
    image = decode(palette, channels=3, background=(9, 8, 7))
    see_through = torch.from_numpy(np.array(RGB.quantize(16)) == 0)
    assert see_through.any() and (torch.tensor([9, 8, 7]) == image[:, see_through].T).all()
    grey = Image.merge("LA", (Image.new("L", (8, 6), 255), GREY))
    for channels in (1, 3):
        image = decode(saved(grey, "PNG"), channels=channels, background=BLACK)
        assert torch.equal(image, to_tensor(np.array(GREY)).expand(channels, -1, -1))


def huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))


def huge_jpeg() -> bytes:
    content = FILES["jpeg"]
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", 50_000, 50_000) + content[at + 4 :]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello", "it is not an image, or is damaged"),
        (b"\xff\xd8\xff", "it is not an image, or is damaged"),
        (FILES["jpeg"][: len(FILES["jpeg"]) // 2], "it is not an image, or is damaged"),
        (FILES["png"][:-30], "it is not an image, or is damaged"),
        (FILES["png"].replace(b"IDAT", b"\0\0\0\0"), "it is not an image, or is damaged"),
        (FILES["png"].replace(b"IHDR", b"IHDX"), "it is not an image, or is damaged"),
        (FILES["webp"][:40], "it is not an image, or is damaged"),
        (FILES["tiff"][:40], "it is not an image, or is damaged"),
        (huge_png(), "it has 3,600,000,000 pixels"),
        (huge_jpeg(), "it has 2,500,000,000 pixels"),
        (saved(GREY.convert("F"), "TIFF"), "its pixels are floating-point numbers"),
        (saved(Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)), "TIFF"), "its pixels have more than 16 bits"),
    ],
)
def test_what_is_no_image_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(content, channels=3, background=BLACK)


def test_every_cut_of_a_file_is_an_image_or_a_reason() -> None:
    for name in ("jpeg", "png", "gif", "webp", "bmp", "tiff"):
        for end in range(0, len(FILES[name]), 7):
            try:
                assert decode(FILES[name][:end], channels=3, background=BLACK).shape == (3, 6, 8)
            except BadImage as error:
                assert str(error)


@pytest.mark.parametrize("size", [(5, 9), (30, 12), (12, 12)])
def test_resize_is_that_of_torchvision(size: tuple[int, int]) -> None:
    image = to_tensor(random_image(1, 12, 20))
    assert torch.equal(resize(image, *size), oracle.resize(image, list(size), antialias=True))


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (50, 50), (7, 9)])
def test_center_crop_is_that_of_torchvision(shape: tuple[int, int]) -> None:
    """Of ramps across the image, of which a pixel is 16 levels or more."""
    y, x = (torch.linspace(0, 255, length).round().to(torch.uint8) for length in shape)
    image = torch.stack([y[:, None].expand(shape), x.expand(shape), 255 - x.expand(shape)])
    cropped = center_crop(image, 14, 14, 0.875)
    expected = oracle.center_crop(oracle.resize(image, [16], antialias=True), [14, 14])
    assert cropped.shape == (3, 14, 14) and (cropped.int() - expected.int()).abs().max() <= 12


def test_a_long_and_thin_image_is_not_scaled_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert center_crop(torch.zeros(3, 1, 60_000, dtype=torch.uint8), 224, 224, 0.875).shape == (3, 224, 224)
    image = torch.linspace(0, 255, 400).round().to(torch.uint8).expand(3, 20, 400)
    for each in (image, image.mT):
        whole = center_crop(each, 40, 40, 0.8)
        with monkeypatch.context() as patch:
            patch.setattr("backbones.data.image_files.images.MAX_PIXELS", 1000)
            assert (center_crop(each, 40, 40, 0.8).int() - whole.int()).abs().max() <= 2


def test_image_files_are_read_as_those_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(random_image(3, 20, 30)))
    info = DataInfo((3, 16, 16), ("a",), (0.0,), (1.0,))
    with pytest.raises(InputError, match=r"x\.png has 30x20 pixels and the model takes 16x16; scale it with --resize"):
        read_images([path], info, may_resize=False)
    whole = to_tensor(random_image(3, 20, 30))
    assert torch.equal(read_images([path], info, may_resize=True)[0], resize(whole, 16, 16))
    scaled = info._replace(center=0.8)
    assert torch.equal(read_images([path], scaled, may_resize=False)[0], center_crop(whole, 16, 16, 0.8))
    with pytest.raises(InputError, match="absent cannot be read: No such file"):
        read_images([tmp_path / "absent"], info, may_resize=False)
