"""The networks that `wavescat.hybrids.MODELS` names: how they start, and what sizes they take."""
import pytest
import torch
from torch import nn

from wavescat.backbones import DenseNet
from wavescat.hybrids import build


@pytest.mark.parametrize("name", ["wrn-16", "resnet50"])
def test_convolutions_start_as_published(name):
    "He et al.'s normal numbers by what goes out; WRN-16-8's last convolution .0208."
    torch.manual_seed(0)
    model = build(name, (3, 32, 32), 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for m in convolutions:
        expected = (2 / (m.out_channels * m.kernel_size[0] * m.kernel_size[1]))**.5
        assert m.weight.std().item() == pytest.approx(expected, rel=.12), m
    if name == "wrn-16":
        assert model.stages[2][1].conv2.weight.std().item() == pytest.approx(.0208, rel=.01)
        assert not model.head.bias.any()


def test_dense_net_at_odd_sides_is_torchvisions():
    "Stem 3×3 of stride 2, padding 1; then halves, rounded down: 78 → 39 → 20 → 10 → 5 → 2."
    model = DenseNet(growth=2).eval()
    x, sides = model.stem(torch.zeros(1, 3, 78, 78)), []
    for stage in model.stages:
        x = stage(x)
        sides.append(x.shape[-1])
    assert sides == [20, 10, 5, 2, 2]
