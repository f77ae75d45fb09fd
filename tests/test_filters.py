"""Derivatives of the filters: finite and right at every size, on every number of threads, compiled."""

import pytest
import torch
from tolerances import within

import wavescat.scattering.plan
from wavescat.scattering.layer import Scattering2D
from wavescat.scattering.learned import INIT, LEARN, LearnedBank
from wavescat.scattering.published import SvdBank, UnboundedBank

THREADS = 1, 2, 5, 6, 12
BANKS = [
    (LearnedBank, "canonical"),
    (LearnedBank, "equivariant"),
    (LearnedBank, "pixelwise"),
    (SvdBank, "canonical"),
    (UnboundedBank, "canonical"),
    (UnboundedBank, "equivariant"),
]


@pytest.fixture(params=THREADS)
def threads(request):
    "So many threads, whatever the machine has: they decide where torch cuts a tensor for its vector units."
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def _derivatives(bank):
    "First and second derivatives of a random projection of the filters to all parameters."
    psi_f, phi_f = bank()
    loss = (psi_f * _noise(*psi_f.shape)).sum() + (phi_f * _noise(*phi_f.shape)).sum()
    parameters = list(bank.parameters())
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    if not any(g.requires_grad for g in first):
        return first, ()  # pixelwise filters are linear
    norm = sum(g.square().sum() for g in first)
    return first, torch.autograd.grad(norm, parameters, allow_unused=True)


def _finite(tensors):
    return all(bool(t.isfinite().all()) for t in tensors if t is not None)


@pytest.mark.parametrize("cls, learn", BANKS)
@pytest.mark.parametrize(
    "J, L, shape", [(1, 3, (14, 14)), (2, 8, (24, 24)), (2, 8, (40, 40)), (3, 4, (48, 32))]
)
def test_derivatives_are_finite_on_any_number_of_threads(cls, learn, J, L, shape, threads):
    for init, seeds in (("tight-frame", 1), ("random", 3)):
        for seed in range(seeds):
            first, second = _derivatives(cls(J, L, shape, learn, init, seed))
            assert _finite(first), f"first derivatives, {init}, seed {seed}"
            assert _finite(second), f"second derivatives, {init}, seed {seed}"


@pytest.mark.parametrize("cls, learn", [b for b in BANKS if b[0] is not SvdBank])
@pytest.mark.parametrize("init", INIT)
@pytest.mark.parametrize(
    "J, L, shape", [(1, 1, (8, 8)), (1, 4, (12, 10)), (2, 3, (14, 16)), (2, 8, (24, 24))]
)
def test_derivatives_of_the_filters_are_right(cls, learn, init, J, L, shape):
    bank = cls(J, L, shape, learn, init, 1, learn_phi=True).double()
    names, values = zip(*bank.named_parameters())

    def filters(*values):
        return tuple(torch.func.functional_call(bank, dict(zip(names, values)), ()))

    assert torch.autograd.gradcheck(filters, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(filters, values, fast_mode=True)


@pytest.mark.parametrize("learn", LEARN)
@pytest.mark.parametrize("largest", [144, 0], ids=["pairs", "FFT"])
def test_second_derivatives_of_the_layer_are_right(largest, learn, monkeypatch):
    monkeypatch.setattr(wavescat.scattering.plan, "LARGEST_SIDE_FOR_PAIRS", largest)
    S = Scattering2D(2, (6, 5), 3, learn=learn, learn_phi=True).double()
    names, values = zip(*S.named_parameters())
    x = _noise(2, 6, 5, dtype=torch.float64).requires_grad_()

    def coefficients(x, *values):
        return torch.func.functional_call(S, dict(zip(names, values)), x)

    assert torch.autograd.gradgradcheck(coefficients, (x, *values), fast_mode=True)


@pytest.mark.parametrize("learn", [None, *LEARN])
@pytest.mark.parametrize("largest", [144, 0], ids=["pairs", "FFT"])
def test_derivatives_are_finite_where_an_image_is_black(largest, learn, monkeypatch):
    "The modulus has no derivative at 0: it counts as 0, and so do the second derivatives."
    monkeypatch.setattr(wavescat.scattering.plan, "LARGEST_SIDE_FOR_PAIRS", largest)
    S = Scattering2D(2, (16, 16), 4, learn=learn)
    x = torch.zeros(2, 16, 16).requires_grad_()
    leaves = [x, *S.parameters()]
    first = torch.autograd.grad(S(x).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), leaves, allow_unused=True)
    assert _finite(first) and _finite(second)


@pytest.mark.parametrize("cls, learn", BANKS[:2] + BANKS[3:4])
def test_the_compiler_of_torch_gives_the_same_gradients(cls, learn):
    bank = cls(2, 8, (24, 24), learn, "random", 1)
    weights = _noise(2, 8, 24, 24)

    def gradients(bank_or_compiled):
        loss = (bank_or_compiled().psi_f * weights).sum()
        return torch.autograd.grad(loss, list(bank.parameters()))

    for compiled, eager in zip(gradients(torch.compile(bank)), gradients(bank)):
        torch.testing.assert_close(compiled, eager, **within("gradients"))


def test_the_layer_compiled_gives_the_same_gradients():
    S = Scattering2D(1, (12, 12), 3, max_order=1, learn="canonical", init="random")
    x = _noise(2, 12, 12).requires_grad_()
    leaves = [x, *S.parameters()]

    def gradients(layer):
        return torch.autograd.grad(layer(x).square().sum(), leaves)

    for compiled, eager in zip(gradients(torch.compile(S, fullgraph=True)), gradients(S)):
        torch.testing.assert_close(compiled, eager, **within("reordered"))
