"""Images of every mode as RGB, damaged files, and what is written."""

import struct
import zlib

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.images import read, save_png, to_pil, to_rgb
from PIL import Image


def picture(width, height, mode="RGB"):
    channels = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(noise.squeeze(), mode)


def test_transparency_lies_over_white_as_in_the_processor():
    image = picture(9, 7, "RGBA")
    convert = pytest.importorskip("transformers.image_transforms").convert_to_rgb
    assert np.array_equal(np.asarray(to_rgb(image)), convert(image, return_numpy=True))
    clear = Image.new("LA", (2, 2), (10, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1), 3)
    palette.info["transparency"] = 3
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "dtype", "grey"),
    [
        (65535, np.uint16, 255),
        (257 * 100, np.uint16, 100),
        (128, np.uint16, 0),
        (65535, np.int32, 255),
        (200, np.int32, 200),
        (0.5, np.float32, 128),
        (255.0, np.float32, 255),
    ],
)
def test_deep_greyscale_is_scaled_and_not_clipped(values, dtype, grey):
    image = Image.fromarray(np.full((2, 3), values, dtype))
    assert to_rgb(image).getpixel((0, 0)) == (grey,) * 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "La", "PA"])
def test_every_other_mode_becomes_rgb(mode):
    if mode in ("La", "PA"):
        image = Image.new("LA", (4, 5), (90, 255)).convert(mode)
    else:
        image = Image.new(mode, (4, 5))
    assert to_rgb(image).mode == "RGB" and to_rgb(image).size == (4, 5)


def test_not_a_number_is_refused():
    with pytest.raises(InputError, match="holds NaN or infinite pixels"):
        to_rgb(Image.fromarray(np.full((2, 2), np.nan, np.float32)))


def test_camera_images_are_turned_upright():
    image = Image.new("RGB", (4, 2))
    image.getexif()[0x0112] = 6  # rotate by 90 degrees
    assert to_rgb(image).size == (2, 4)


def png(*chunks):
    """A PNG file of the given (kind, data) chunks."""
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HEADER = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
PIXELS = (b"IDAT", zlib.compress(bytes(range(200))))
DAMAGED = {
    "empty": b"",
    "text": b"not an image",
    "half": png(HEADER, (b"IDAT", PIXELS[1][:10])),
    "huge header": png((b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), PIXELS, (b"IEND", b"")),
    "text that unpacks to 80 MB": png(HEADER, (b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))), PIXELS),
    "damaged text": png(HEADER, (b"zTXt", b"a\0\0broken"), (b"iTXt", b"a"), (b"IDAT", b"x")),
    "short webp": b"RIFF\x20\0\0\0WEBPVP8 " + bytes(20),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_in_one_sentence(tmp_path, data):
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match="image .*image.png"):
        read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="none.png does not exist"):
        read(tmp_path / "none.png")


def test_metadata_survives_any_prompt(tmp_path):
    entries = {"prompt": "日本 🐈 \u201cquotes\u201d\nline", "seed": "1"}
    save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", entries)
    assert Image.open(tmp_path / "a.png").text["prompt"] == entries["prompt"]


def test_tensors_become_images_of_whole_values():
    first, second = to_pil(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 4, 6, 3))
    assert first.size == (6, 4) and first.getpixel((0, 0)) == (0, 0, 0) and second.getpixel((5, 3)) == (255, 255, 255)
