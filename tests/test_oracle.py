"""Against kymatio, the independent implementation; skipped where it isn't installed."""
import pytest
import torch

pytest.importorskip("kymatio")
from wavescat.scattering import Scattering2D, kymatio_scattering, scattering_paths  # noqa: E402

CASES = [(J, L, shape) for J, shapes in {1: [(8, 8), (31, 33)], 2: [(32, 32), (17, 40)], 3: [(32, 32), (45, 61)], 4: [(64, 48)], 5: [(64, 64)]}.items() for L in (1, 2, 3, 4, 6, 8, 12, 16, 20) for shape in shapes if J < 4 or L < 9]


@pytest.mark.parametrize("J, L, shape", CASES)
def test_equal_to_kymatio(J, L, shape):
    order = 2 if L <= 8 else 1
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(J * 100 + L))
    ours, theirs = Scattering2D(J, shape, L, order)(x), kymatio_scattering(J, shape, L, order)(x)
    assert ours.shape == theirs.shape == (2, len(scattering_paths(J, L, order)), shape[0] // 2**J, shape[1] // 2**J)
    assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def test_any_leading_shape():
    S, K = Scattering2D(2, (16, 16), 4), kymatio_scattering(2, (16, 16), 4)
    for batch in ((), (3,), (2, 1, 3)):
        x = torch.randn(*batch, 16, 16)
        torch.testing.assert_close(S(x), K(x), atol=2e-6, rtol=0)


def test_order_0_is_the_first_coefficient():
    x = torch.randn(2, 24, 20)
    torch.testing.assert_close(Scattering2D(2, (24, 20), 4, 0)(x), kymatio_scattering(2, (24, 20), 4, 1)(x)[:, :1], atol=2e-6, rtol=0)
