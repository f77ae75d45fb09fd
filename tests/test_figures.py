"""Figures of filters: they show what the filters are, and what can't be drawn is refused."""

import math
import os
import subprocess
import sys
from itertools import permutations
from types import ModuleType

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

matplotlib.use("agg")
from conftest import ROOT, wavescat
from tolerances import within

from wavescat import figures
from wavescat.figures.disk import coefficients_disk
from wavescat.figures.files import save
from wavescat.figures.films import film
from wavescat.figures.frames import frame_bounds, littlewood_paley
from wavescat.figures.grids import filter_grid
from wavescat.figures.inputs import measure_orientations
from wavescat.figures.learning import before_after, parameter_curves
from wavescat.figures.matching import match, morlet_distances
from wavescat.figures.parts import PARTS
from wavescat.figures.recorder import Recorder, load_recording
from wavescat.runs.experiment import experiment
from wavescat.scattering import bank as filters
from wavescat.scattering.bank import FilterBank, filter_bank, fourier_bank
from wavescat.scattering.layer import Scattering2D
from wavescat.scattering.learned import LEARN, LearnedBank, random_frame
from wavescat.training.inference import load_model
from wavescat.training.run import run


def _random_walk(learn="canonical", records=5, J=2, L=4, side=16, size=0.03, **kw):
    "A recorder of a bank whose parameters wander."
    bank = LearnedBank(J, L, (side, side), learn, **kw)
    recorder, gen = Recorder(bank), torch.Generator().manual_seed(0)
    for _ in range(records):
        sum(f.square().sum() for f in bank()).backward()
        recorder.record()
        bank.zero_grad()
        with torch.no_grad():
            for p in bank.parameters():
                p += size * p.abs().mean() * torch.randn(p.shape, generator=gen)
    return bank, recorder


def _images(fig):
    return [ax.images[0].get_array() for ax in fig.axes if ax.images]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("J, L, shape", [(1, 1, (16, 16)), (2, 3, (20, 24)), (3, 4, (32, 32))])
def test_a_grid_has_every_filter(part, J, L, shape):
    bank = filter_bank(J, L, shape)
    fig = filter_grid(bank, part)
    pictures = _images(fig)
    assert len(pictures) == J * L
    fig.canvas.draw()
    last = pictures[-1]
    if part == "fourier":
        np.testing.assert_allclose(last, np.fft.fftshift(bank.psi_f[-1, -1].numpy()))
    if part == "real":
        psi = torch.fft.ifft2(bank.psi_f[-1, -1]).real
        assert math.isclose(np.max(last), psi[0, 0], rel_tol=1e-9) and len(last) % 2 == 1
        assert np.unravel_index(np.argmax(last), last.shape) == (len(last) // 2,) * 2


def test_a_grid_has_at_most_so_many_orientations():
    assert len(_images(filter_grid(filter_bank(1, 40, (16, 16)), most=5))) == 5


def test_layers_models_and_banks_are_read_alike():
    S = Scattering2D(2, (16, 16), 4)
    learned = Scattering2D(2, (16, 16), 4, learn="canonical")
    banks = [
        S,
        learned,
        learned.bank,
        torch.nn.Sequential(learned, torch.nn.Flatten()),
        S.filters(),
    ]
    for other in banks[1:]:
        pairs = match(S, other)
        assert pairs.distance.max() < 1e-5 and (pairs.partner == np.arange(8)).all()
        np.testing.assert_allclose(frame_bounds(other), frame_bounds(S), **within("rounding"))


def test_orientations_are_modulo_pi():
    frame = filters.tight_frame(2, 4)
    half_turn = frame._replace(theta=frame.theta + math.pi)
    a, b = (fourier_bank(m, 1.6, 2, (24, 24)) for m in (frame, half_turn))
    torch.testing.assert_close(measure_orientations(a), measure_orientations(b), **within("oracle"))
    assert match(a, b).distance.max() < 1e-6 and (a.psi_f - b.psi_f).abs().max() > 0.5


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_is_optimal(seed):
    "No other pairing of a small bank is cheaper."
    a, b = random_frame(1, 5, seed), random_frame(1, 5, seed + 100)
    d = morlet_distances(a, b)
    banks = [LearnedBank(1, 5, (16, 16)) for _ in "ab"]
    for bank, m in zip(banks, (a, b)):
        with torch.no_grad():
            for p, v in zip((bank.theta, bank.xi, bank.raw_sigma, bank.raw_gamma), m):
                p.copy_(v)
    least = min(sum(d[i, p[i]] for i in range(5)) for p in permutations(range(5)))
    pairs = match(*banks)
    assert math.isclose(pairs.distance.sum(), least, rel_tol=1e-4)
    assert sorted(pairs.partner) == list(range(5))
    assert (d >= 0).all()
    assert (a.theta[:, None] - b.theta).abs().max() > math.pi  # modulo π matters here


def test_the_mirror_image_of_a_spectrum_is_the_same_filter():
    bank = filter_bank(2, 3, (15, 16))
    mirrored = FilterBank(bank.psi_f.flip(-2, -1).roll((1, 1), (-2, -1)), bank.phi_f)
    assert match(bank, mirrored).distance.max() < 1e-6


def test_littlewood_paley_is_drawn_as_computed():
    bank = filter_bank(2, 8, (40, 40))
    A = filters.littlewood_paley(bank)
    fig = littlewood_paley(bank)
    np.testing.assert_allclose(fig.axes[0].images[0].get_array(), np.fft.fftshift(A.numpy()))
    low, high = frame_bounds(bank)
    assert (low, high) == (A.min().item(), A.max().item())
    assert 0.12 < low < 0.13 and 1 <= high < 1.0001
    mean = fig.axes[1].lines[0].get_ydata()
    assert math.isclose(mean[0], A[0, 0], rel_tol=1e-9)
    assert mean.min() >= low - 1e-9 and mean.max() <= high + 1e-9
    with pytest.raises(ValueError, match="frequency 0 is the lowest"):
        frame_bounds(bank, -1)


def test_before_and_after_stand_in_pairs():
    bank = filter_bank(1, 4, (16, 16))
    swapped = FilterBank(bank.psi_f[:, [2, 0, 3, 1]], bank.phi_f)
    pictures = _images(before_after(bank, swapped))
    for a, b in zip(pictures[:4], pictures[4:8]):
        np.testing.assert_allclose(a, b)


@pytest.mark.parametrize("learn", LEARN)
def test_a_recorder_gives_back_the_banks(learn):
    bank, recorder = _random_walk(learn, learn_phi=True)
    expected = [f.detach().clone() for f in bank()]
    recorder.record()
    with torch.no_grad():
        for p in bank.parameters():
            p += 1.0
    for recorded, f in zip(recorder.at(-1)(), expected):
        torch.testing.assert_close(recorded, f)
    h = recorder.history()
    distance = h["distance"]
    assert list(h["step"]) == list(range(6)) and distance.shape == (6, 8)
    assert distance[0].max() < 1e-5 and distance[-1].mean() > 1e-3
    gradients = [n for n in h if n.startswith("gradient")]
    assert len(gradients) == len(list(bank.parameters()))
    assert all(np.isfinite(h[n][:5]).all() and np.isnan(h[n][5]) for n in gradients)
    assert ("theta" in h) == (learn != "pixelwise")
    parameter_curves(recorder).canvas.draw()


def test_curves_are_what_was_recorded():
    bank, recorder = _random_walk(records=1, L=1, J=1)
    for theta in (0.2, -0.2, -0.4):
        with torch.no_grad():
            bank.theta.fill_(theta)
        recorder.record(recorder.steps[-1] + 10)
    fig = parameter_curves(recorder)
    x, y = fig.axes[0].lines[0].get_data()
    np.testing.assert_allclose(x, [0, 10, np.nan, 20, 30])  # broken where θ passes 0
    np.testing.assert_allclose(
        y[[1, 3, 4]], np.degrees([0.2, math.pi - 0.2, math.pi - 0.4]), **within("rounding")
    )
    assert all(ax.get_xlabel() == "step" for ax in fig.axes)
    assert "rad/pixel" in fig.axes[1].get_ylabel() and "pixels" in fig.axes[2].get_ylabel()
    with pytest.raises(ValueError, match="steps must grow"):
        recorder.record(5)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_film_has_its_frames(tmp_path, every):
    _, recorder = _random_walk(records=7)
    path = film(recorder, tmp_path / "f.gif", every=every, fps=5, size=16)
    with Image.open(path) as gif:
        assert gif.n_frames == math.ceil(7 / every)
        assert gif.info["duration"] == 200 and gif.info["loop"] == 0


def test_equal_banks_have_frames_too(tmp_path):
    S = Scattering2D(1, (16, 16), 2)
    with Image.open(film([S] * 4, tmp_path / "f.gif", parts=list(PARTS))) as gif:
        assert gif.n_frames == 4


def test_a_film_is_made_small_enough(tmp_path):
    _, recorder = _random_walk(records=12)
    large, small = (
        film(recorder, tmp_path / f"{n}.gif", **kw).stat().st_size
        for n, kw in (("large", {}), ("small", dict(limit=30_000)))
    )
    assert small <= 30_000 < large < 1_500_000
    with pytest.raises(ValueError, match="film every"):
        film(recorder, tmp_path / "none.gif", limit=3000)
    assert not (tmp_path / "none.gif").exists()


def _disk(S, paths):
    "Directions on the page, mean radii and energies of a disk's sectors of order 1."
    patches = coefficients_disk(S, paths).axes[0].collections[0]
    edges = [p.vertices for p in patches.get_paths()]
    middle = np.array([v[:-1].mean(0) for v in edges])
    return (
        np.degrees(np.arctan2(middle[:, 1], middle[:, 0])),
        np.hypot(*middle.T),
        np.asarray(patches.get_array()),
    )


@pytest.mark.parametrize("xi, ring", [(2.4, 1), (1.2, 0)])
def test_stripes_are_drawn_at_their_frequency(xi, ring):
    "A wave along the rows is above and below the middle, fine ones outside."
    S = Scattering2D(2, (32, 32), 8)
    u = torch.arange(32.0)
    for stripes, directions in (
        (torch.cos(xi * u)[:, None].expand(32, 32), {90.0}),
        (torch.cos(xi * u).expand(32, 32), {0.0, 180.0}),
    ):
        angle, radius, energy = _disk(S(stripes), S.paths)
        top = np.argsort(energy)[-2:]
        assert len(angle) == 2 * 16
        assert {*abs(angle[top].round())} == directions
        assert ((radius[top] > 0.58) == bool(ring)).all()


@pytest.mark.parametrize("J, L, order", [(1, 1, 2), (1, 4, 1), (2, 3, 2), (4, 5, 2)])
def test_a_disk_has_every_coefficient(J, L, order):
    S = Scattering2D(J, (32, 32), L, order)
    x = S(torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0)))
    fig = coefficients_disk(x, S.paths)
    drawn = [
        c
        for ax in fig.axes
        for c in ax.collections
        if c.get_array() is not None
        and len(c.get_paths()) == len(c.get_array())
        and hasattr(c, "set_paths")
        and ax.get_title().startswith("order")
    ]
    energies = np.concatenate([c.get_array() for c in drawn])
    assert math.isclose(energies.sum(), 2 * x[:, 1:].double().square().sum(), rel_tol=1e-5)
    assert len(energies) == 2 * (len(S.paths) - 1)
    for c in drawn:
        assert all(len(p.vertices) > 4 for p in c.get_paths())
    fig.canvas.draw()


def test_a_disk_of_learned_filters():
    S = Scattering2D(2, (32, 32), 4, learn="canonical", init="random", seed=3)
    coefficients_disk(S(torch.randn(32, 32)), S.paths).canvas.draw()


@pytest.mark.parametrize(
    "suffix, head",
    [(".svg", b"<?xml"), (".PDF", b"%PDF"), (".png", b"\x89PNG"), (".webp", b"RIFF")],
)
def test_figures_are_saved(tmp_path, suffix, head):
    path = save(filter_grid(filter_bank(1, 2, (16, 16))), tmp_path / f"a{suffix}")
    assert path.read_bytes().startswith(head)


@pytest.mark.parametrize("learn", LEARN)
def test_the_filters_of_a_stored_run_are_loaded(tmp_path, monkeypatch, learn):
    "Full-batch steps from the tight frame: one record a step, the last of the final filters."
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path))
    options = dict(
        model="scattering-linear",
        J=1,
        L=4,
        per_class=2,
        epochs=5,
        batch_size=16,
        augment="none",
        lr=0.1,
    )
    e = experiment(**options, learn=learn)
    run(e)
    r = load_recording(e)
    assert r.steps == list(range(6))
    bank = next(m for m in load_model(e).modules() if isinstance(m, LearnedBank))
    for a, b in zip(r.at(-1)(), bank()):
        torch.testing.assert_close(a, b)
    for a, b in zip(r.at(0)(), LearnedBank(1, 4, r.source.shape, learn)()):
        torch.testing.assert_close(a, b)
    h = r.history()
    assert h["distance"][0].max() < 1e-5 < h["distance"][-1].mean()
    gradients = [h[n] for n in h if n.startswith("gradient")]
    assert all(np.isnan(g[0]) and (g[1:] > 0).all() for g in gradients)
    with Image.open(film(r, tmp_path / "f.gif")) as gif:
        assert gif.n_frames == 6
    fixed = experiment(**options)
    run(fixed)
    with pytest.raises(ValueError, match="recorded no filters"):
        load_recording(fixed)
    with pytest.raises(FileNotFoundError, match="isn't stored"):
        load_recording(experiment(**options, learn=learn, seed=1))
    for identity, file, code, message in (
        (e.identity[:8], "g.gif", 0, ""),
        (e.identity, "g.mp4", 2, "ends in .gif"),
        (fixed.identity, "h.gif", 2, "recorded no filters"),
        ("zzz", "h.gif", 2, "no run begins with"),
    ):
        done = wavescat("runs film", identity, tmp_path / file, "--every", "2", store=tmp_path)
        assert done.returncode == code and message in done.stderr, done.stderr
        assert done.stderr.count("\n") == (code > 0), done.stderr
        assert (tmp_path / file).exists() == (code == 0)
    with Image.open(tmp_path / "g.gif") as gif:
        assert gif.n_frames == 3


def test_what_cannot_be_drawn_is_refused(tmp_path):
    S, other = Scattering2D(2, (16, 16), 4), Scattering2D(2, (16, 16), 3)
    empty, file, fig = (
        Recorder(LearnedBank(1, 2, (8, 8))),
        tmp_path / "f.gif",
        filter_grid(filter_bank(1, 1, (8, 8))),
    )
    nan = FilterBank(*(t * math.nan for t in S.filters()))
    for message, bad in {
        "did you mean imaginary": lambda: filter_grid(S, "imaginery"),
        "expected a FilterBank": lambda: filter_grid([1, 2]),
        "holds 0 scattering layers": lambda: filter_grid(torch.nn.Linear(1, 1)),
        "psi_f \\(J, L, M, N\\)": lambda: filter_grid(
            FilterBank(torch.ones(2, 8, 8), torch.ones(8, 8))
        ),
        "can't be matched": lambda: before_after(S, other),
        "aren't finite": lambda: match(S, nan),
        "filters are fixed": lambda: Recorder(S),
        "recorder is empty: call record": lambda: parameter_curves(empty),
        "history is empty": lambda: parameter_curves({}),
        "recorder is empty": lambda: film(empty, file),
        "no banks": lambda: film([], file),
        "one shape": lambda: film([S, other], file),
        "ends in .gif": lambda: film([S], tmp_path / "f.avi"),
        "doesn't exist": lambda: film([S], tmp_path / "no" / "f.gif"),
        "whole number": lambda: film([S], file, every=0),
        "fps must": lambda: film([S], file, fps=0),
        "size must": lambda: film([S], file, size=3),
        "at least one of": lambda: film([S], file, parts=()),
        "unknown part": lambda: film([S], file, parts=("fourier", "x")),
        "with K = 25 as the paths": lambda: coefficients_disk(torch.zeros(3, 4, 4), S.paths),
        "order 1": lambda: coefficients_disk(torch.zeros(1, 4, 4), S.paths[:1]),
        "no suffix": lambda: save(fig, tmp_path / "a"),
        "unknown format": lambda: save(fig, tmp_path / "a.tif"),
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            bad()
        assert "\n" not in str(caught.value)
    assert not file.exists()


def test_training_imports_no_figures():
    "Nothing that computes brings in drawing."
    code = (
        "import sys, wavescat.training.run; "
        "drawing = {'matplotlib', 'skimage.color'}; "
        "loaded = {m for m in sys.modules if m in drawing or m.startswith('wavescat.figures')}; "
        "assert not loaded, loaded"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ).returncode == 0


@pytest.mark.parametrize("name", figures.__all__)
def test_the_names_that_figures_offers(name):
    "Each is defined, and none is hidden by a module of the same name."
    assert not isinstance(getattr(figures, name), ModuleType)


def test_figures_are_loaded_when_they_are_used():
    "Importing the list of figures loads neither torch nor matplotlib."
    code = (
        "import sys; from wavescat import figures; "
        "assert not {'torch', 'matplotlib'} & set(sys.modules); "
        "import wavescat.figures.style; "
        "assert figures.figure is wavescat.figures.style.figure and 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ).returncode == 0
