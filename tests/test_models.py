"""The models of the registry: how they start, and what sizes they take."""

import itertools
import re

import pytest
import torch
from torch import nn

from wavescat.models.densenet import DenseNet
from wavescat.models.registry import MODELS, build, model_options
from wavescat.training.checks import check_image_size


@pytest.mark.parametrize("name", ["wrn-16", "resnet50"])
def test_convolutions_start_as_published(name):
    "He et al.'s normal numbers by what goes out; WRN-16-8's last convolution .0208."
    torch.manual_seed(0)
    model = build(name, (3, 32, 32), 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for m in convolutions:
        expected = (2 / (m.out_channels * m.kernel_size[0] * m.kernel_size[1])) ** 0.5
        assert m.weight.std().item() == pytest.approx(expected, rel=0.12), m
    if name == "wrn-16":
        assert model.stages[2][1].conv2.weight.std().item() == pytest.approx(0.0208, rel=0.01)
        assert not model.head.bias.any()


def test_dense_net_at_odd_sides_is_torchvisions():
    "Stem 3×3 of stride 2, padding 1; then halves, rounded down: 78 → 39 → 20 → 10 → 5 → 2."
    model = DenseNet(growth=2).eval()
    x, sides = model.stem(torch.zeros(1, 3, 78, 78)), []
    for stage in model.stages:
        x = stage(x)
        sides.append(x.shape[-1])
    assert sides == [20, 10, 5, 2, 2]


def _combinations():
    for name in MODELS:
        options = model_options(name)
        tiny = {"width": 2, "widen": 1, "L": 2}
        tiny = {k: v for k, v in tiny.items() if k in options}
        ways = {"J": (2, 4), "order": (1,)}
        ways = {k: v for k, v in ways.items() if k in options}
        for side in (9, 32):
            for values in itertools.product(*ways.values()):
                yield name, side, {**tiny, **dict(zip(ways, values))}


def _problem(compute):
    "The message of the error, or None."
    try:
        compute()
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def test_the_check_takes_what_the_network_takes():
    "Model × J × size: what is refused can't be computed, and what isn't refused can."
    wrong = []
    for name, side, options in _combinations():
        shape = (3, side, side)
        refused = _problem(lambda: check_image_size(name, shape, 4, tuple(options.items())))

        def computed():
            with torch.no_grad():
                return build(name, shape, 4, **options).eval()(torch.zeros(2, *shape))

        failed = _problem(computed)
        if bool(refused) != bool(failed):
            wrong.append((name, side, options, refused, failed))
    assert not wrong, wrong[:5]


@pytest.mark.parametrize(
    "name, side, J", [("scattering-alexnet", 32, 4), ("scattering-densenet", 32, 3)]
)
def test_maps_that_scattering_makes_too_small_are_refused(name, side, J):
    options = (("width", 2), ("J", J), ("L", 2))
    with pytest.raises(
        ValueError, match=re.escape(f"{name} can't take images as small as {side}×{side}")
    ):
        check_image_size(name, (3, side, side), 4, options)
