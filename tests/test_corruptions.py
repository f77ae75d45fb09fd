"""CIFAR-10-C's corruptions against its definitions, one image at a time.

The definitions are written once more with NumPy, SciPy and Pillow.

Source: Hendrycks & Dietterich 2019, the numbers for 32×32 pixels."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import color, data
from tolerances import within

from wavescat.analysis.corruptions import CIFAR10_C

LEVELS = range(1, 6)


@pytest.fixture(scope="module")
def photographs():
    "48 patches of 32×32 pixels from three photographs made smaller, (N, 3, 32, 32) in 0–1, in 8 bits."
    patches = []
    for photo in (data.coffee(), data.astronaut(), data.chelsea()):
        small = np.asarray(Image.fromarray(photo).resize((128, 128), Image.Resampling.BOX))
        patches += [
            small[r : r + 32, c : c + 32] for r in range(0, 128, 32) for c in range(0, 128, 32)
        ]
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2) / 255


def _zoom(image, factor):
    h, w = image.shape[:2]
    ch, cw = math.ceil(h / factor), math.ceil(w / factor)
    top, left = (h - ch) // 2, (w - cw) // 2
    big = ndimage.zoom(image[top : top + ch, left : left + cw], (factor, factor, 1), order=1)
    top, left = (big.shape[0] - h) // 2, (big.shape[1] - w) // 2
    return big[top : top + h, left : left + w]


def _motion(image, radius, sigma, degrees):
    "ImageMagick's motion blur: a sum of shifted copies, the border pixels go on outside."
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    H, W = image.shape[:2]
    total = np.zeros_like(image)
    for i, weight in enumerate(weights / weights.sum()):
        dy, dx = (math.ceil(i * f(math.radians(degrees)) - 0.5) for f in (math.sin, math.cos))
        rows, cols = np.clip(np.arange(H) + dy, 0, H - 1), np.clip(np.arange(W) + dx, 0, W - 1)
        total += weight * image[rows[:, None], cols]
    return total


def _plasma(side, decay, rng):
    field, mesh, wibble = np.zeros((side, side)), side, 100.0
    while mesh >= 2:
        half = mesh // 2
        for r in range(half, side, mesh):
            for c in range(half, side, mesh):
                corners = [
                    field[(r + a) % side, (c + b) % side]
                    for a in (-half, half)
                    for b in (-half, half)
                ]
                field[r, c] = np.mean(corners) + wibble * rng.uniform(-wibble, wibble)
        for r in range(0, side, half):
            for c in range((r + half) % mesh, side, mesh):
                neighbours = [
                    field[(r - half) % side, c],
                    field[(r + half) % side, c],
                    field[r, (c - half) % side],
                    field[r, (c + half) % side],
                ]
                field[r, c] = np.mean(neighbours) + wibble * rng.uniform(-wibble, wibble)
        mesh, wibble = half, wibble / decay
    field -= field.min()
    return field / field.max()


def _gaussian_noise(x, level, rng):
    return x + rng.normal(size=x.shape, scale=(0.04, 0.06, 0.08, 0.09, 0.1)[level])


def _shot_noise(x, level, rng):
    c = (500, 250, 100, 75, 50)[level]
    return rng.poisson(x * c) / c


def _impulse_noise(x, level, rng):
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    hit, salt = rng.random(x.shape) <= amount, rng.random(x.shape) <= 0.5
    return np.where(hit, salt.astype(float), x)


def _defocus_blur(x, level, rng):
    radius, alias = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]
    u = np.arange(-8, 9)
    disk = (u[:, None] ** 2 + u**2 <= radius**2).astype(float)
    bell = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias**2))
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(bell, bell) / bell.sum() ** 2)
    return ndimage.correlate(x, kernel[:, :, None], mode="mirror")


def _glass_blur(x, level, rng):
    "As the code that made the published images: its swap of two views only copies."
    sigma, reach, times = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[
        level
    ]
    x = np.floor(ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest") * 255 + 1e-4) / 255
    for _ in range(times):
        for h in range(32 - reach, reach, -1):
            for w in range(32 - reach, reach, -1):
                dy, dx = rng.integers(-reach, reach, 2)
                x[h, w] = x[h + dy, w + dx]
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def _motion_blur(x, level, rng):
    return _motion(x, *((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[level], rng.uniform(-45, 45))


def _zoom_blur(x, level, rng):
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[level], 0.01)
    return (x + sum(_zoom(x, f) for f in factors)) / (len(factors) + 1)


def _snow(x, level, rng):
    mean, sd, zoom, least, radius, sigma, remaining = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[level]
    flakes = _zoom(rng.normal(size=(32, 32, 1), loc=mean, scale=sd), zoom)
    flakes[flakes < least] = 0
    flakes = _motion(
        np.floor(np.clip(flakes, 0, 1) * 255) / 255, radius, sigma, rng.uniform(-135, -45)
    )
    pale = remaining * x + (1 - remaining) * np.maximum(
        x, (x @ [0.299, 0.587, 0.114])[:, :, None] * 1.5 + 0.5
    )
    return pale + flakes + np.rot90(flakes, 2)


def _fog(x, level, rng):
    thick, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[level]
    return (x + thick * _plasma(32, decay, rng)[:, :, None]) * x.max() / (x.max() + thick)


def _brightness(x, level, rng):
    hsv = color.rgb2hsv(x)
    hsv[:, :, 2] = np.clip(hsv[:, :, 2] + (0.05, 0.1, 0.15, 0.2, 0.3)[level], 0, 1)
    return color.hsv2rgb(hsv)


def _contrast(x, level, rng):
    mean = x.mean((0, 1))
    return (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[level] + mean


def _elastic(x, level, rng):
    alpha, sigma, corner = (
        32 * v
        for v in (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        )[level]
    )
    before = 16.0 + np.array([[10, 10], [-10, 10], [-10, -10]])  # rows and columns
    after = before + rng.uniform(-corner, corner, (3, 2))
    A = np.linalg.solve(
        np.c_[after, np.ones(3)], before
    )  # where each place of the new image comes from
    u = np.stack(np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij"), -1)
    at = np.moveaxis(np.concatenate([u, np.ones((32, 32, 1))], -1) @ A, -1, 0)
    x = np.stack(
        [ndimage.map_coordinates(x[:, :, k], at, order=1, mode="mirror") for k in range(3)], -1
    )
    if not alpha:
        return x
    tau = [
        ndimage.gaussian_filter(drawn, sigma, mode="reflect", truncate=3) * alpha
        for drawn in rng.uniform(-1, 1, (2, 32, 32))
    ]
    at = np.moveaxis(u, -1, 0) + np.stack(tau)
    return np.stack(
        [ndimage.map_coordinates(x[:, :, k], at, order=1, mode="reflect") for k in range(3)], -1
    )


def _pixelate(x, level, rng):
    n = int(32 * (0.95, 0.9, 0.85, 0.75, 0.65)[level])
    image = Image.fromarray(np.uint8(np.round(x * 255)))
    return (
        np.asarray(
            image.resize((n, n), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
        )
        / 255
    )


def _jpeg(x, level, rng):
    out = io.BytesIO()
    Image.fromarray(np.uint8(np.round(x * 255))).save(
        out, "JPEG", quality=(80, 65, 58, 50, 40)[level]
    )
    return np.asarray(Image.open(out)) / 255


PUBLISHED = {
    "gaussian noise": _gaussian_noise,
    "shot noise": _shot_noise,
    "impulse noise": _impulse_noise,
    "defocus blur": _defocus_blur,
    "glass blur": _glass_blur,
    "motion blur": _motion_blur,
    "zoom blur": _zoom_blur,
    "snow": _snow,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic": _elastic,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
FIXED = (
    "defocus blur",
    "zoom blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg",
)  # nothing is left to chance


def _by_definition(name, photographs, severity):
    rng = np.random.default_rng(0)
    images = photographs.permute(0, 2, 3, 1).double().numpy()
    changed = [PUBLISHED[name](image.copy(), severity - 1, rng) for image in images]
    return torch.from_numpy(np.clip(np.stack(changed), 0, 1)).permute(0, 3, 1, 2).float()


def test_one_kind_alone_is_no_definition_of_theirs():
    assert CIFAR10_C.keys() - PUBLISHED.keys() == {"frost"}, (
        "its photographs are theirs; ours are drawn, as the notebook says"
    )


@pytest.mark.parametrize("severity", LEVELS)
@pytest.mark.parametrize("name", FIXED)
def test_what_chance_has_no_part_in_is_the_same(name, severity, photographs):
    torch.testing.assert_close(
        CIFAR10_C[name](photographs, severity),
        _by_definition(name, photographs, severity),
        **within("pixels"),
    )


@pytest.mark.parametrize("severity", LEVELS)
@pytest.mark.parametrize("name", [n for n in PUBLISHED if n not in FIXED])
def test_what_chance_decides_changes_as_much(name, severity, photographs):
    "Mean absolute and root mean squared change of all images."
    photographs = photographs.repeat(
        6 if name == "elastic" else 1, 1, 1, 1
    )  # whose draws differ most from image to image
    ours, theirs = (
        y - photographs
        for y in (
            CIFAR10_C[name](photographs, severity),
            _by_definition(name, photographs, severity),
        )
    )
    for size in (lambda d: d.abs().mean().item(), lambda d: d.square().mean().sqrt().item()):
        assert size(ours) == pytest.approx(size(theirs), rel=0.12)


class Replayed:
    "The numbers that `CIFAR10_C` draws for image `at` of `n`, as NumPy's generators give them."

    def __init__(self, at, n):
        self.at, self.n, self.g = at, n, torch.Generator().manual_seed(0)

    def uniform(self, low, high, shape=()):
        return low + (high - low) * torch.rand(self.n, *shape, generator=self.g)[self.at].numpy()

    def normal(self, size, loc=0.0, scale=1.0):
        H, W, C = size
        drawn = torch.randn(self.n, C, H, W, generator=self.g)[self.at].permute(1, 2, 0)
        return loc + scale * drawn.double().numpy()

    def integers(self, low, high, k):
        return torch.randint(low, high, (k, self.n), generator=self.g)[:, self.at].numpy()


@pytest.mark.parametrize("severity", LEVELS)
@pytest.mark.parametrize("name", ["gaussian noise", "glass blur", "motion blur", "snow", "elastic"])
def test_the_same_draws_give_the_same_image(name, severity, photographs):
    "But for glass, where a value on the border between two bytes may fall to either side."
    photographs = photographs[::8]
    ours = CIFAR10_C[name](photographs, severity)
    for at, image in enumerate(photographs.permute(0, 2, 3, 1).double().numpy()):
        theirs = PUBLISHED[name](image.copy(), severity - 1, Replayed(at, len(photographs)))
        theirs = torch.from_numpy(np.clip(theirs, 0, 1)).permute(2, 0, 1).float()
        differs = (ours[at] - theirs).abs()
        assert differs.max() < (1.1 / 255 if name == "glass blur" else 2e-4)
        assert (differs > 2e-4).float().mean() < 0.001
