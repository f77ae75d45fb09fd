"""The layer as its users meet it: gradients, learning, saving, other processes, memory, and speed."""

import copy
import importlib.util
import math
import pickle
import subprocess
import sys

import pytest
import torch
from tolerances import within

import wavescat.scattering.layer_operators
import wavescat.scattering.plan
from wavescat.analysis.costs import memory
from wavescat.analysis.measurements import speedup
from wavescat.analysis.timing import Case, times
from wavescat.scattering.layer import Scattering2D
from wavescat.scattering.learned import LEARN


def _images(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["pairs", "FFT"])
def engine(request, monkeypatch):
    "Both arrangements, whatever the size of the images."
    if request.param == "FFT":
        monkeypatch.setattr(wavescat.scattering.plan, "LARGEST_SIDE_FOR_PAIRS", 0)
    return request.param


@pytest.mark.parametrize("learn", LEARN)
def test_gradients_agree_with_finite_differences(engine, learn):
    S = Scattering2D(2, (4, 5), L=2, learn=learn, slant=0.6, learn_phi=True).double()
    assert S.cascade.plan.uses_pairs == (engine == "pairs")
    names, values = zip(*S.named_parameters())
    x = _images(2, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, *p: torch.func.functional_call(S, dict(zip(names, p)), x),
        (x, *values),
        fast_mode=True,
    )


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.7])
def test_gradient_of_theta_at_any_slant(gamma):
    S = Scattering2D(2, (16, 16), L=3, learn="canonical", slant=gamma).double()
    x, h = _images(16, 16, dtype=torch.float64), 1e-5

    def loss():
        return S(x)[1:].square().sum()

    loss().backward()
    for i in (0, 2, 4):
        with torch.no_grad():
            S.bank.theta[i] += h
            high = loss()
            S.bank.theta[i] -= 2 * h
            low = loss()
            S.bank.theta[i] += h
        assert math.isclose(
            S.bank.theta.grad[i], (high - low) / (2 * h), rel_tol=1e-4, abs_tol=1e-8
        )


@pytest.mark.parametrize("learn", LEARN)
@pytest.mark.parametrize("J, L", [(1, 1), (2, 8), (3, 3), (5, 2)])
def test_learning_starts_from_the_tight_frame(learn, J, L):
    x = _images(2, 32, 32)
    fixed, learned = Scattering2D(J, (32, 32), L)(x), Scattering2D(J, (32, 32), L, learn=learn)(x)
    assert (fixed - learned).abs().max() <= 1e-6 * fixed.abs().max()


def test_random_starts_are_seeded():
    a, b, c = (
        Scattering2D(2, (16, 16), 4, init="random", seed=s)(_images(16, 16)) for s in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.allclose(a, c)
    for learn in LEARN:
        assert torch.equal(
            *(
                Scattering2D(2, (16, 16), 4, learn=learn, init="random", seed=1)(_images(16, 16))
                for _ in range(2)
            )
        )


def test_widths_stay_positive_whatever_the_step():
    S = Scattering2D(1, (8, 8), 2, learn="canonical")
    with torch.no_grad():
        S.bank.raw_sigma.sub_(3)
        S.bank.raw_gamma.sub_(3)
    m = S.bank.morlets()
    assert m.sigma.min() > 0 and m.gamma.min() > 0


def test_filters_are_rebuilt_only_when_they_changed(monkeypatch):
    S, built = Scattering2D(2, (16, 16), 2, learn="canonical"), []
    prepare = wavescat.scattering.layer_operators.prepare

    def counted(*args, **options):
        built.append(1)
        return prepare(*args, **options)

    monkeypatch.setattr(wavescat.scattering.layer_operators, "prepare", counted)
    x = _images(2, 16, 16)
    with torch.no_grad():
        before = S(x)
        S(x)
        S(x)
        assert len(built) == 1
        S.bank.theta.add_(0.1)
        assert not torch.allclose(S(x), before) and len(built) == 2
        S.load_state_dict(Scattering2D(2, (16, 16), 2, learn="canonical").state_dict())
        assert torch.equal(S(x), before) and len(built) == 3
        S(x)
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(S.parameters()) + 0.05, S.parameters()
        )
        assert not torch.allclose(S(x), before)
    S(x), S(x)
    assert len(built) == 6


def test_evaluation_follows_every_way_to_change_parameters():
    x = _images(2, 16, 16)
    S = Scattering2D(2, (16, 16), 2, learn="canonical")
    optimiser = torch.optim.Adam(S.parameters(), lr=0.05, fused=True)

    def fused():
        S(x).square().sum().backward()
        optimiser.step()

    def data():
        S.bank.xi.data.mul_(0.9)

    def width():
        S.bank.raw_phi_sigma.fill_(1.0)

    for change in (fused, data, width):
        with torch.no_grad():
            before = S(x)
        change()
        with torch.no_grad():
            after = S(x)
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, S(x).detach(), **within("reordered"))
    assert S._replicate_for_data_parallel().cached_operators is None


def test_inference_mode_leaves_nothing_behind():
    x, S = _images(2, 16, 16), Scattering2D(2, (16, 16), 2, learn="canonical").requires_grad_(False)
    with torch.inference_mode():
        S(x)
        fixed = Scattering2D(2, (16, 16), 2)
    x.requires_grad_()
    (S(x).sum() + fixed(x).sum()).backward()


@pytest.mark.parametrize("learn", [None, "canonical"])
def test_made_on_no_device_and_filled_later(learn):
    x, whole = _images(16, 16), Scattering2D(2, (16, 16), 2, learn=learn)
    with torch.device("meta"):
        S = Scattering2D(2, (16, 16), 2, learn=learn)
    S = S.to_empty(device="cpu")
    S.load_state_dict(whole.state_dict())
    assert torch.equal(S(x), whole(x))


def test_groups_for_an_optimiser():
    S = Scattering2D(2, (16, 16), 4, learn="canonical", learn_phi=True)
    theta, rest = S.parameter_groups(
        orientations={"lr": 0.1}, rest={"lr": 0.2, "weight_decay": 0.5}
    )
    assert theta["params"][0] is S.bank.theta and theta["lr"] == 0.1 and theta["weight_decay"] == 0
    assert sum(p.numel() for p in rest["params"]) == 3 * 8 + 1 and rest["weight_decay"] == 0.5
    torch.optim.SGD([theta, rest]).step()
    assert [
        g["name"] for g in Scattering2D(2, (16, 16), 4, learn="pixelwise").parameter_groups()
    ] == ["filters"]


@pytest.mark.parametrize("learn", [None, *LEARN])
def test_saved_and_loaded(tmp_path, learn):
    from safetensors.torch import load_model, save_model

    S = Scattering2D(2, (16, 20), 3, learn=learn, init="random", seed=5)
    other = Scattering2D(2, (16, 20), 3, learn=learn, init="random", seed=5 if learn is None else 6)
    save_model(S, tmp_path / "s.safetensors")
    load_model(other, tmp_path / "s.safetensors")
    x = _images(2, 16, 20)
    assert torch.equal(S(x), other(x))
    pickle.dump((S, x, S(x).detach()), open(tmp_path / "s.pickle", "wb"))
    code = (
        "import pickle, torch; "
        f"S, x, y = pickle.load(open({str(tmp_path / 's.pickle')!r}, 'rb')); "
        "print(torch.allclose(S(x), y, atol=1e-6))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "True"
    )
    if torch.cuda.is_available():
        S.load_state_dict(other.cuda().state_dict())
        torch.testing.assert_close(S(x), other(x.cuda()).cpu(), **within("reordered"))


def test_moved_and_cast():
    S, x = Scattering2D(2, (32, 32), 4), _images(3, 32, 32)
    exact = Scattering2D(2, (32, 32), 4).double()(x.double())
    back = copy.deepcopy(S).to(torch.bfloat16).double()
    assert torch.equal(back(x.double()), exact)  # through bfloat16 and back, nothing is lost
    assert (S(x) - exact).abs().max() < 2e-6 * exact.abs().max()
    assert (
        copy.deepcopy(S).bfloat16()(x.bfloat16()) - exact
    ).abs().max() < 0.02 * exact.abs().max()
    assert S(x.half()).dtype == torch.float32
    assert copy.deepcopy(S).to("meta")(x.to("meta")).shape == exact.shape
    for learn in (None, "canonical"):
        wide = Scattering2D(2, (160, 20), 2, learn=learn)
        assert (
            copy.deepcopy(wide).bfloat16()(_images(160, 20).bfloat16()) - wide(_images(160, 20))
        ).abs().max() < 0.02 * wide(_images(160, 20)).abs().max()


def test_compiled_without_breaks():
    S, x = Scattering2D(2, (16, 16), 2, learn="canonical"), _images(2, 16, 16)
    torch.testing.assert_close(
        torch.compile(S, fullgraph=True, backend="aot_eager")(x), S(x), **within("rounding")
    )


def test_per_sample_gradients_and_ensembles(engine):
    S, x = Scattering2D(2, (16, 16), 2, learn="canonical"), _images(3, 16, 16)
    parameters = dict(S.named_parameters())

    def loss(p, x):
        return torch.func.functional_call(S, p, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i in range(3):
        one = torch.func.grad(loss)(parameters, x[i])
        for name in parameters:
            torch.testing.assert_close(each[name][i], one[name], **within("reordered"))
    both = {name: torch.stack([p.detach(), p.detach() + 0.01]) for name, p in parameters.items()}
    losses = torch.func.vmap(loss, (0, None))(both, x)
    torch.testing.assert_close(losses[0], loss(parameters, x).detach(), **within("reordered"))
    assert losses[1] != losses[0]


def test_the_same_every_time_and_not_a_number_stays_where_it_is(engine):
    S, x = Scattering2D(2, (20, 24), 4), _images(70, 20, 24)
    first = S(x)
    assert torch.equal(S(x), first)
    torch.testing.assert_close(S(x[:3]), first[:3], **within("rounding"))
    x[1, 3, 3] = math.nan
    assert (
        torch.equal(S(x)[[0, *range(2, 70)]], first[[0, *range(2, 70)]]) and S(x)[1].isnan().any()
    )
    assert S(x[:0]).shape == S(x[:0].clone().requires_grad_()).shape == (0, *first.shape[1:])


def test_flat_and_padded_and_contiguous():
    x = _images(2, 3, 16, 20)
    S = Scattering2D(2, (16, 20), 3)
    assert torch.equal(Scattering2D(2, (16, 20), 3, flat=True)(x), S(x).flatten(1, 2))
    padded = x.index_select(-2, S.rows).index_select(-1, S.cols)
    assert torch.equal(Scattering2D(2, (16, 20), 3, pre_pad=True)(padded), S(x))
    assert torch.equal(S(x.transpose(-2, -1).contiguous().transpose(-2, -1)), S(x))


def test_recomputing_gives_the_same_gradients(engine):
    grads, images = [], _images(50, 16, 16)
    for recompute in (False, True):
        S, x = (
            Scattering2D(2, (16, 16), 3, learn="canonical", recompute=recompute),
            images.clone().requires_grad_(),
        )
        S(x).square().sum().backward()
        grads.append([x.grad, *(p.grad for p in S.parameters())])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)
    under_func = torch.func.grad(lambda x: S(x).square().sum())(images)
    torch.testing.assert_close(under_func, grads[0][0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured under Linux")
def test_recomputing_saves_memory():
    held, again = (
        memory(Case(32, 2, 64, gradients=True), engine)["beyond"]
        for engine in ("wavescat", "recomputing")
    )
    assert again < held / 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured under Linux")
def test_memory_does_not_grow_with_the_batch():
    few, many = (memory(Case(32, 2, batch))["beyond"] / 2**20 for batch in (64, 640))
    assert many <= 64 and many - few < 12
    assert memory(Case(100, 3, 32))["beyond"] / 2**20 <= 64


@pytest.mark.skipif(not importlib.util.find_spec("kymatio"), reason="kymatio isn't installed")
@pytest.mark.parametrize(
    "case", [Case(32, 2, 32), Case(32, 2, 16, gradients=True)], ids=["forward", "backward"]
)
def test_faster_than_kymatio(case):
    "Half of what the report shows is enough here: test machines are busy."
    assert speedup(times(case, repeats=3))["ratio"] > 2


@pytest.mark.parametrize("leading", [(0,), (0, 3), (2, 0)])
@pytest.mark.parametrize("options", [{}, {"flat": True}, {"pre_pad": True}, {"recompute": True}])
@pytest.mark.parametrize("learn", [None, "canonical"])
def test_no_images_have_gradients_of_zero(engine, leading, options, learn):
    if options.get("flat") and len(leading) == 1:
        leading = (0, 3)
    S = Scattering2D(2, (16, 16), 2, learn=learn, **options)
    x = torch.zeros(*leading, *(S.padded_shape if S.pre_pad else S.shape), requires_grad=True)
    wanted = [x, *S.parameters()]
    grads = torch.autograd.grad(S(x).square().sum(), wanted, create_graph=True)
    for tensor, grad in zip(wanted, grads):
        assert torch.equal(grad, torch.zeros_like(tensor))
    for tensor, grad in zip(wanted, torch.autograd.grad(sum(g.sum() for g in grads), wanted)):
        assert grad.shape == tensor.shape


@pytest.mark.parametrize("learn", [None, *LEARN])
def test_derivatives_forwards(engine, learn):
    S, x = Scattering2D(2, (8, 8), 2, learn=learn).double(), _images(2, 8, 8, dtype=torch.float64)
    start = {name: p.detach() for name, p in S.named_parameters()} | {"x": x}
    step = {name: _images(*p.shape, dtype=p.dtype, seed=1) for name, p in start.items()}

    def at(values):
        return torch.func.functional_call(
            S, {k: v for k, v in values.items() if k != "x"}, (values["x"],)
        )

    def along(h):
        return at({name: p + h * step[name] for name, p in start.items()})

    tangent = torch.func.jvp(at, (start,), (step,))[1]
    torch.testing.assert_close(tangent, (along(1e-6) - along(-1e-6)) / 2e-6, **within("rounding"))
    with torch.autograd.forward_ad.dual_level():
        dual = at(
            {name: torch.autograd.forward_ad.make_dual(p, step[name]) for name, p in start.items()}
        )
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    torch.testing.assert_close(torch.func.jacfwd(S)(x[0]), torch.func.jacrev(S)(x[0]))

    def energy(x):
        return S(x).square().sum()

    torch.testing.assert_close(
        torch.func.hessian(energy)(x[0]), torch.autograd.functional.hessian(energy, x[0])
    )


@pytest.mark.parametrize("learn", [None, "canonical"])
@pytest.mark.parametrize("way", ["trace", "export"])
def test_traces_leave_the_batch_free(engine, way, learn):
    S, x = Scattering2D(2, (16, 16), 2, learn=learn, flat=True), _images(70, 3, 16, 16)
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=100)}}
    if way == "trace":
        graph = torch.jit.trace(S, (x[:3],))
    else:
        graph = torch.export.export(S, (x[:3],), dynamic_shapes=batch).module()
    for n in (1, 2, 7, 70):
        torch.testing.assert_close(graph(x[:n]), S(x[:n]), **within("reordered"))


@pytest.mark.parametrize(
    "learn, dtype", [(None, torch.float32), (None, torch.float64), ("canonical", torch.float32)]
)
def test_onnx_leaves_the_batch_free(engine, tmp_path, learn, dtype):
    S, x = (
        Scattering2D(2, (16, 16), 2, learn=learn, flat=True).to(dtype),
        _images(7, 3, 16, 16, dtype=dtype),
    )
    if learn:
        with torch.no_grad():
            S.bank.theta.add_(0.1)  # the filters as they stand, not as they began
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=100)}}
    pytest.importorskip("onnxscript")
    torch.onnx.export(S, (x[:3],), dynamo=True, dynamic_shapes=batch, verbose=False).save(
        tmp_path / "S.onnx"
    )
    runtime = pytest.importorskip("onnxruntime").InferenceSession(
        tmp_path / "S.onnx", providers=["CPUExecutionProvider"]
    )
    name = runtime.get_inputs()[0].name
    for n in (1, 2, 7):
        [found] = runtime.run(None, {name: x[:n].numpy()})
        torch.testing.assert_close(
            torch.from_numpy(found), S(x[:n]).detach(), **within("reordered")
        )
