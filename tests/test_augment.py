"""AutoAugment's operations are Pillow's."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from skimage import color, data
from tolerances import within

from wavescat.data.colour import colour_jitter
from wavescat.data.operations import OPERATIONS

PHOTO = Image.fromarray(data.astronaut()).resize((48, 32), Image.Resampling.BOX)
W, H = PHOTO.size
GREY = 125


def _tensor(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def _on_grey(image):
    "What is transparent becomes the published grey."
    pixels = np.array(image)
    pixels[pixels[:, :, 3] == 0] = GREY
    return _tensor(Image.fromarray(pixels))


def _affine(*numbers):
    return _on_grey(PHOTO.convert("RGBA").transform(PHOTO.size, Image.Transform.AFFINE, numbers))


def _apply(name, magnitude):
    return OPERATIONS[name].apply(_tensor(PHOTO), torch.tensor([magnitude]))


@pytest.mark.parametrize("m", [0.3, -0.3, 0.13])
@pytest.mark.parametrize(
    "name, pillow",
    [
        ("ShearX", lambda m: _affine(1, m, 0, 0, 1, 0)),
        ("ShearY", lambda m: _affine(1, 0, 0, m, 1, 0)),
        ("TranslateX", lambda m: _affine(1, 0, -m * W, 0, 1, 0)),
        ("TranslateY", lambda m: _affine(1, 0, 0, 0, 1, -m * H)),
        ("Rotate", lambda m: _on_grey(PHOTO.convert("RGBA").rotate(math.degrees(m)))),
    ],
)
def test_geometry(name, pillow, m):
    "But for single pixels that lie on the border between two."
    differs = (_apply(name, m) - pillow(m)).abs().amax(1) > 1e-3
    assert differs.float().mean() < 0.003


@pytest.mark.parametrize("m", [0.9, -0.9, 0.3])
@pytest.mark.parametrize(
    "name, pillow",
    [
        ("Contrast", ImageEnhance.Contrast),
        ("Color", ImageEnhance.Color),
        ("Brightness", ImageEnhance.Brightness),
        ("Sharpness", ImageEnhance.Sharpness),
    ],
)
def test_enhancement(name, pillow, m):
    "Pillow rounds in between."
    torch.testing.assert_close(
        _apply(name, m), _tensor(pillow(PHOTO).enhance(1 + m)), **within("levels")
    )


@pytest.mark.parametrize(
    "name, m, pillow",
    [
        ("AutoContrast", 0.0, ImageOps.autocontrast),
        ("Invert", 0.0, ImageOps.invert),
        ("Equalize", 0.0, ImageOps.equalize),
        ("Solarize", 100.0, lambda image: ImageOps.solarize(image, 156)),
        ("Posterize", 4.0, lambda image: ImageOps.posterize(image, 4)),
    ],
)
def test_tables_of_values(name, m, pillow):
    torch.testing.assert_close(_apply(name, m), _tensor(pillow(PHOTO)), **within("oracle"))


def test_hue_turns_about_the_grey_axis_not_in_hsv():
    "As its text says: the mean of the three colours stays, HSV's value doesn't."
    x = _tensor(PHOTO) * 0.4 + 0.3
    y = colour_jitter(x, torch.Generator().manual_seed(0), 1.0, 0.0, 0.0, 0.0, 0.1)
    torch.testing.assert_close(y.mean(1), x.mean(1), **within("rounding"))
    value = [color.rgb2hsv(v[0].permute(1, 2, 0).numpy())[:, :, 2] for v in (x, y)]
    assert np.abs(value[0] - value[1]).max() > 0.01
