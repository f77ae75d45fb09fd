"""Deformations against independent implementations, paired draws, representations of every kind,
and the study with stored runs and weight files."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from tolerances import within

from wavescat.analysis.deformations import DEFORMATIONS, Deformation, sup_gradient
from wavescat.analysis.displacements import (
    corner_shifts,
    displace,
    perspective,
    pixel_positions,
    shear,
    translation,
    warp,
)
from wavescat.analysis.stability import (
    circular_shift,
    distance_to_random_images,
    features,
    fourier_modulus,
    reflect,
    stability,
)
from wavescat.scattering.layer import Scattering2D


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def test_deform_needs_torch_alone():
    code = (
        "import sys; before = set(sys.modules); import torch; with_torch = set(sys.modules); "
        "import wavescat.analysis.stability; print(*{m.partition('.')[0] for m in "
        "set(sys.modules) - with_torch} - {'wavescat'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and not {
        "numpy",
        "matplotlib",
        "pandas",
        "torchvision",
        "kornia",
        "scipy",
    } & set(done.stdout.split()), done.stdout + done.stderr


@pytest.mark.parametrize("shape", [(24, 24), (17, 30), (32, 9)])
@pytest.mark.parametrize("name", [n for n, d in DEFORMATIONS.items() if d.tau])
def test_displacing_agrees_with_scipy(name, shape):
    """Bilinear, half-sample reflection: SciPy's map_coordinates, on square and other images, of
    one colour and of three."""
    from scipy.ndimage import map_coordinates

    d, x = DEFORMATIONS[name], torch.rand(2, 3, *shape, dtype=torch.float64)
    draws = d.draws(2, seed=3)
    tau = (
        d.displacement(pixel_positions(shape, torch.float64), d.most, shape, draws)
        .expand(2, *shape, 2)
        .numpy()
    )
    ours = d(x, d.most, draws).numpy()
    assert ours.shape == x.shape
    for i in range(2):
        source = np.indices(shape) - np.moveaxis(tau[i], -1, 0)
        for c in range(3):
            np.testing.assert_allclose(
                ours[i, c],
                map_coordinates(x[i, c].numpy(), source, order=1, mode="reflect"),
                **within("oracle", torch.float64),
            )


def test_perspective_agrees_with_scikit_image():
    from skimage.transform import ProjectiveTransform

    shape, draws = (20, 30), corner_shifts(3, torch.Generator().manual_seed(5))
    u = pixel_positions(shape, torch.float64)
    tau = perspective(u, 0.2, shape, draws)
    b = np.array([[-10, -15], [-10, 15], [10, 15], [10, -15.0]])
    for i in range(3):
        T = ProjectiveTransform.from_estimate(b * (1 - 0.2 * draws[i].double().numpy()), b)
        np.testing.assert_allclose(
            (u - tau[i]).reshape(-1, 2).numpy(), T(u.reshape(-1, 2).numpy()), **within("oracle")
        )


@pytest.mark.parametrize("name", DEFORMATIONS)
def test_strength_zero_is_the_identity(name):
    for shape in ((32, 32), (20, 33)):
        x = torch.rand(3, 2, *shape)
        torch.testing.assert_close(DEFORMATIONS[name](x, 0.0), x, **within("reordered"))


@pytest.mark.parametrize("name", DEFORMATIONS)
def test_each_image_by_its_own_strength(name):
    d, x = DEFORMATIONS[name], torch.rand(4, 1, 16, 16)
    draws, s = d.draws(4), torch.linspace(0, d.most, 4)
    alone = torch.cat(
        [d(x[i : i + 1], s[i], None if draws is None else draws[i : i + 1]) for i in range(4)]
    )
    torch.testing.assert_close(d(x, s, draws), alone, **within("rounding"))


def test_directions():
    "A dot goes where it should: down, anticlockwise; a shear leaves the middle row."
    x = torch.zeros(1, 1, 21, 21)
    x[0, 0, 10, 15] = 1  # right of the middle

    def where(y):
        return tuple(int(i) for i in np.unravel_index(int(y.argmax()), (21, 21)))

    assert where(DEFORMATIONS["rotation"](x, 90.0)) == (5, 10)
    assert where(DEFORMATIONS["translation"](x, 100 * 3 / 21)) == (13, 15)
    assert where(DEFORMATIONS["shear"](x, 10.0)) == (10, 15)
    assert where(DEFORMATIONS["shear"](x.roll(4, 2), 45.0)) == (14, 19)
    assert x.sum() == 1 and displace(x, torch.zeros(1, 21, 21, 2)).sum().isclose(torch.tensor(1.0))


def test_the_warps_stretch():
    A = torch.tensor([[0.5, 0.6], [0, 0.3]], dtype=torch.float64)  # ∇τ / ε at the right border
    for eps in (0.1, 0.5, 1.0):
        torch.testing.assert_close(
            sup_gradient(DEFORMATIONS["warp"], eps, (32, 32)),
            eps * torch.linalg.matrix_norm(A, 2)[None],
        )
    u = torch.tensor([16.0, -8.0])
    torch.testing.assert_close(
        warp(u[None, None], 0.5, (32, 32))[0, 0, 0],
        16 * 0.5 * torch.tensor([0.5 + 0.3 * 0.25, -0.3 * 0.5]),
    )
    assert sup_gradient(
        DEFORMATIONS["perspective"], 0.2, (32, 32), DEFORMATIONS["perspective"].draws(5)
    ).shape == (5,)
    draws = DEFORMATIONS["perspective"].draws(
        2000
    )  # as many as the largest preset takes: each image costs its own derivatives, not those of all
    many = sup_gradient(DEFORMATIONS["perspective"], 0.2, (32, 32), draws)
    torch.testing.assert_close(
        many[[7, 1999]],
        torch.cat(
            [
                sup_gradient(DEFORMATIONS["perspective"], 0.2, (32, 32), draws[[i]])
                for i in (7, 1999)
            ]
        ),
        **within("rounding", torch.float64),
    )
    assert (sup_gradient(DEFORMATIONS["warp"], torch.tensor([0.1, 0.2]), (32, 32)).diff() > 0).all()


def test_draws_are_paired():
    "The perspective's corners depend on image and seed, on neither strength, model nor batch."
    d, x = DEFORMATIONS["perspective"], torch.rand(10, 1, 16, 16)
    assert torch.equal(d.draws(10, 1), d.draws(10, 1)) and not torch.equal(
        d.draws(10, 1), d.draws(10, 2)
    )
    seen = []

    def model(y):
        seen.append(y.clone())
        return y

    a = stability(model, x, d, (0.1, 0.2), seed=1)
    first, seen[:] = list(seen), []
    b = stability(model, x, d, (0.1, 0.2), seed=1)
    assert all(torch.equal(p, q) for p, q in zip(first, seen)) and torch.equal(a, b)
    torch.testing.assert_close(
        stability(model, x, d, (0.2,), seed=1, batch=3), a[:, 1:], **within("oracle")
    )
    torch.testing.assert_close(d(x, 0.2, d.draws(10, 1)), first[2], atol=0, rtol=0)


def test_ratio_and_reference_by_hand():
    x = torch.tensor([[3.0, 4.0]]).view(1, 1, 1, 2)
    double = Deformation(1.0, "", change=lambda x, s: x * (1 + s))
    torch.testing.assert_close(
        stability(torch.nn.Identity(), x, double, (0, 0.5, 1)), torch.tensor([[0.0, 0.5, 1.0]])
    )
    torch.testing.assert_close(
        distance_to_random_images(torch.nn.Identity(), x, others=torch.zeros(4, 1, 1, 2)),
        torch.ones(1),
    )
    assert torch.equal(
        distance_to_random_images(torch.nn.Identity(), x, 7),
        distance_to_random_images(torch.nn.Identity(), x, 7),
    ) and not torch.equal(
        distance_to_random_images(torch.nn.Identity(), x, 7),
        distance_to_random_images(torch.nn.Identity(), x, 7, seed=1),
    )


def test_scattering_is_more_stable_than_pixels_under_a_warp():
    from wavescat.data.load import load

    x = torch.tensor(load("textures").test[::40]).float() / 255

    def centred(f):
        return lambda y: f((y - x.mean()) / x.std())

    levels = (0.2, 0.5, 1.0)
    pixels, *scattered = (
        stability(centred(f), x, DEFORMATIONS["warp"], levels)
        for f in (
            torch.nn.Identity(),
            Scattering2D(2, (32, 32)),
            Scattering2D(3, (32, 32)),
            Scattering2D(2, (32, 32), flat=True),
        )
    )
    assert (scattered[0].mean(0) < pixels.mean(0)).all() and (
        scattered[1].mean(0) < scattered[0].mean(0)
    ).all()
    torch.testing.assert_close(scattered[2], scattered[0])


def test_shifts_around_the_torus():
    """The Fourier modulus doesn't feel them; scattering feels them in proportion to their size,
    and half as much with each scale."""
    from wavescat.data.load import load

    x = reflect(torch.tensor(load("textures").test[::80]).float() / 255 - 0.5)
    assert x.shape[2:] == (64, 64) and torch.equal(x, x.flip(2)) and torch.equal(x, x.flip(3))
    shift = Deformation(1.0, "pixels", change=circular_shift)
    assert stability(fourier_modulus, x, shift, (5,)).max() < 1e-5
    r = torch.stack(
        [
            stability(
                Scattering2D(J, (64 - 2 ** (J + 1),) * 2, L=4, pre_pad=True), x, shift, (1, 2)
            ).mean(0)
            for J in (2, 3, 4)
        ]
    )
    assert (r[:, 0].log2().diff() < -0.7).all() and ((r[1:, 1] / r[1:, 0] - 2).abs() < 0.1).all()


def test_features_of_a_network():
    from wavescat.models.registry import build

    model = build("scatresnet18", (1, 16, 16), 3, width=2, L=2).eval()
    x = torch.rand(5, 1, 16, 16)
    f = features(model)
    with torch.no_grad():
        torch.testing.assert_close(model.head(f(x)), model(x))
    assert not model.head._forward_pre_hooks and stability(
        f, x, DEFORMATIONS["rotation"], (0, 5.0)
    ).shape == (5, 2)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: displace(x[0], torch.zeros(1, 8, 8, 2)), "expected a batch of images"),
        (lambda x: displace((x * 255).to(torch.uint8), torch.zeros(1, 8, 8, 2)), "uint8"),
        (lambda x: displace(x, torch.zeros(3, 8, 8, 2)), "(1 or 2, 8, 8, 2), got (3, 8, 8, 2)"),
        (lambda x: DEFORMATIONS["sharpness"](x - 0.5, 1.0), "before normalising"),
        (lambda x: DEFORMATIONS["perspective"](x, 1.5), "below 1"),
        (lambda x: stability(lambda y: y * 0, x, DEFORMATIONS["shear"], (1.0,)), "2 of 2 images"),
        (
            lambda x: stability(lambda y: y.sum(), x, DEFORMATIONS["shear"], (1.0,)),
            "expected (2, ...)",
        ),
        (lambda x: features(torch.nn.Linear(2, 2).eval()), "no layer 'head'"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError) as e:
        call(torch.rand(2, 1, 8, 8))
    assert words in str(e.value) and "\n" not in str(e.value)


def test_double_precision_and_gradients():
    x = torch.rand(1, 1, 7, 9, dtype=torch.float64) * 0.5 + 0.25
    for name, d in DEFORMATIONS.items():
        s = torch.tensor(0.0373, dtype=torch.float64, requires_grad=True)
        assert d(x, s).dtype == torch.float64 and torch.autograd.gradcheck(
            lambda x, s: d(x, s), (x.clone().requires_grad_(), s)
        ), name
    for tau in (shear, translation, warp):
        assert tau(pixel_positions((4, 4)), 0.0, (4, 4)).abs().max() == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A tiny stored run, in a store of its own."
    from wavescat.runs.experiment import experiment
    from wavescat.runs.paths import run_dir
    from wavescat.training.run import run

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WAVESCAT_RUNS", str(tmp_path_factory.mktemp("runs")))
        e = experiment(
            model="scatresnet18", L=2, width=2, per_class=2, epochs=1, batch_size=8, validation=16
        )
        run(e, device=torch.device("cpu"))
        yield run_dir(e)


def study(monkeypatch, **parameters):
    "What the study gives with these parameters, executed in this process."
    from wavescat.studies import stability_verdict
    from wavescat.studies.presets import resolve
    from wavescat.studies.templates import template_cells

    gave = []
    monkeypatch.setattr(stability_verdict, "publish_results", lambda *what: gave.append(what))
    values = resolve(
        "stability",
        "smoke",
        {
            "representations": "pixels",
            "deformations": "perspective, warp",
            "bound_J": "1",
            **parameters,
        },
    )
    for cell in template_cells("stability"):
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), values)
    ((verdict, table, results),) = gave
    return verdict, table, results


def test_study_with_stored_runs_and_weight_files(trained, monkeypatch):
    "The features of a run and of the weight file it left are the same; a second time nothing is computed."
    asked = {
        "runs": trained.name[:10],
        "weights": f"scatresnet18 L:2 width:2 @ {trained / 'weights.safetensors'}",
    }
    verdict, table, results = study(monkeypatch, **asked)
    models = {row["model"]: row for row in table if row.get("deformation") == "warp"}
    assert list(models) == [
        "pixels",
        "scatresnet18 L=2",
        "scatresnet18 L=2 width=2, weights.safetensors",
    ]
    assert (
        "of the trained models scatresnet18 L=2 moves least under the strongest warp, by "
        in verdict
    )  # equal, so the first
    assert all(results) and all(
        m["levels"][0]["mean"] < 1e-3 < m["levels"][-1]["mean"] for m in models.values()
    )
    _, ours, same = models.values()
    assert ours["levels"] == same["levels"] and ours["reference"] == same["reference"]
    before = {p: p.stat().st_mtime_ns for p in (trained.parent / "bench").iterdir()}
    assert study(monkeypatch, compute=False, **asked)[1] == table
    assert {p: p.stat().st_mtime_ns for p in (trained.parent / "bench").iterdir()} == before


def test_study_with_nothing_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path))
    verdict, table, results = study(monkeypatch, compute=False)
    assert (
        verdict == "Nothing is computed yet."
        and table == []
        and results == [None, None]
        and not list(tmp_path.iterdir())
    )


@pytest.mark.parametrize(
    "parameter, words",
    [
        (dict(weights="resnet18 width:2 @ {weights}"), "doesn't fit resnet18 width:2"),
        (dict(weights="{weights}"), "MODEL OPTION:VALUE @ FILE"),
        (dict(weights="resnet18 @ nowhere.pt"), "no weights at"),
        (dict(runs="0123456789"), "no run begins with"),
        (dict(deformations="twirl"), "unknown deformation"),
        (dict(representations="pixel"), "did you mean pixels"),
        (dict(images=0), "between 1 and"),
        (dict(bound_side=31), "a multiple of 2"),
    ],
)
def test_study_refuses_in_one_line(trained, monkeypatch, parameter, words):
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        study(
            monkeypatch,
            **{
                k: v.format(weights=trained / "weights.safetensors") if isinstance(v, str) else v
                for k, v in parameter.items()
            },
        )
    assert words in str(e.value) and "\n" not in str(e.value)


def test_study_refuses_a_run_on_other_images_before_it_computes(trained, tmp_path, monkeypatch):
    from wavescat.studies.plans import experiments_of
    from wavescat.studies.presets import resolve

    copy = shutil.copytree(trained, tmp_path / trained.name)
    about = json.loads((copy / "images.json").read_text())
    (copy / "images.json").write_text(json.dumps({**about, "shape": [3, 32, 32]}))
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"takes images of shape \(3, 32, 32\), textures has \(1, 32, 32\): choose the set",
    ):
        experiments_of("stability", resolve("stability", "smoke", {"runs": trained.name}))
