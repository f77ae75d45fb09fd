"""Against kymatio, the independent implementation; skipped where it isn't installed."""

import pytest
import torch

pytest.importorskip("kymatio")
from tolerances import within

from wavescat.scattering.layer import Scattering2D  # noqa: E402
from wavescat.scattering.oracle import kymatio_scattering
from wavescat.scattering.paths import scattering_paths

SHAPES = {
    1: [(8, 8), (31, 33)],
    2: [(32, 32), (17, 40)],
    3: [(32, 32), (45, 61)],
    4: [(32, 48), (97, 33)],
    5: [(32, 32), (64, 64)],
}
CASES = [
    (J, L, shape, order)
    for J, shapes in SHAPES.items()
    for L in (1, 2, 3, 4, 6, 8, 12, 16, 20)
    for order in (1, 2)
    for shape in (shapes if J < 4 or L < 5 else shapes[:1])
]


@pytest.mark.parametrize("J, L, shape, order", CASES)
def test_equal_to_kymatio(J, L, shape, order):
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(J * 100 + L))
    ours, theirs = Scattering2D(J, shape, L, order)(x), kymatio_scattering(J, shape, L, order)(x)
    assert (
        ours.shape
        == theirs.shape
        == (2, len(scattering_paths(J, L, order)), shape[0] // 2**J, shape[1] // 2**J)
    )
    assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def test_any_leading_shape():
    S, K = Scattering2D(2, (16, 16), 4), kymatio_scattering(2, (16, 16), 4)
    for batch in ((), (3,), (2, 1, 3)):
        x = torch.randn(*batch, 16, 16)
        torch.testing.assert_close(S(x), K(x), **within("oracle"))


def test_order_0_is_the_first_coefficient():
    x = torch.randn(2, 24, 20)
    torch.testing.assert_close(
        Scattering2D(2, (24, 20), 4, 0)(x),
        kymatio_scattering(2, (24, 20), 4, 1)(x)[:, :1],
        **within("oracle"),
    )


def test_padded_beforehand():
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

    S = Scattering2D(3, (40, 33), 2, pre_pad=True)
    x = torch.randn(2, *S.padded_shape)
    torch.testing.assert_close(
        S(x), ScatteringTorch2D(3, (40, 33), L=2, pre_pad=True)(x), **within("oracle")
    )


@pytest.mark.parametrize("batch", [(), (1,), (2,), (2, 2), (2, 2, 2)])
def test_batch_shapes_that_kymatio_promises(batch):
    S = Scattering2D(3, (32, 32))
    assert (
        S(torch.zeros(*batch, 32, 32)).shape
        == (*batch, 217, 4, 4)
        == kymatio_scattering(3, (32, 32))(torch.zeros(*batch, 32, 32)).shape
    )


@pytest.mark.parametrize(
    "images", [None, torch.zeros(()), torch.zeros(32), torch.zeros(31, 31), torch.zeros(4, 32, 31)]
)
def test_what_kymatio_refuses_is_refused(images):
    for S, errors in (
        (Scattering2D(3, (32, 32)), (ValueError, TypeError)),
        (kymatio_scattering(3, (32, 32)), (RuntimeError, TypeError)),
    ):
        with pytest.raises(errors):
            S(images)


def test_gradient_to_the_images():
    x = torch.randn(2, 16, 16)
    grads = []
    for S in (Scattering2D(2, (16, 16), 4), kymatio_scattering(2, (16, 16), 4)):
        leaf = x.clone().requires_grad_()
        S(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert (grads[0] - grads[1]).abs().max() <= 2e-6 * grads[1].abs().max()


def test_images_in_any_memory_order():
    "kymatio refuses images that don't lie in one piece, as those of channels-last augmentations don't."
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    S, K = Scattering2D(2, (16, 16), 4), kymatio_scattering(2, (16, 16), 4)
    torch.testing.assert_close(S(x), K(x), **within("oracle"))
