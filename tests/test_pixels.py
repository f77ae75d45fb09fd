"""Pixels: one reader for training, prediction, Grad-CAM and the demos; files as people have them;
files that change while a process lives."""

import io
import json
import os
import struct
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import wavescat
from PIL import Image
from tolerances import within

from wavescat.apps.photographs import grey_square
from wavescat.data import file_state
from wavescat.data.decode import decode
from wavescat.data.file_state import assume_files_unchanged
from wavescat.data.folders import cache_dir, source_folder
from wavescat.data.list_readers import BIOMASS_TARGETS
from wavescat.data.load import load, own_reader
from wavescat.data.raw_image import on_white
from wavescat.data.readers import READERS
from wavescat.data.sources import SOURCES
from wavescat.runs.experiment import experiment
from wavescat.runs.paths import run_dir
from wavescat.training.checks import check
from wavescat.training.inference import classify, prepared
from wavescat.training.inference import test_predictions as predictions_of_test
from wavescat.training.results import cached_result
from wavescat.training.run import run
from wavescat.training.task import build_model, split_of
from wavescat.training.task import test_labels as labels_of_test
from wavescat.training.tensors import save_tensors

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    "Data, decoded sets and runs in folders of this test."
    for variable, folder in (("DATA", "data"), ("CACHE", "cache"), ("RUNS", "runs")):
        monkeypatch.setenv(f"WAVESCAT_{variable}", str(tmp_path / folder))
    load.cache_clear()
    yield
    load.cache_clear()


def _png16(a, extra=b""):
    "A PNG of 16 bits a colour, (H, W) or (H, W, C), whose rows are stored as differences."
    h, w, c = (*a.shape, 1)[:3]
    raw = a.astype(">u2").reshape(h, -1).view(np.uint8)
    rows = raw.copy()
    rows[:, 2 * c :] -= raw[:, : -2 * c]
    packed = b"".join(b"\1" + row.tobytes() for row in rows)

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(packed))
        + chunk(b"IEND", b"")
    )


def _tiff(a, tmp=None, **tags):
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, a, **{"photometric": "rgb" if a.ndim == 3 else "minisblack", **tags})
    return out.getvalue()


def _saved(im, form="PNG", **kw):
    out = io.BytesIO()
    im.save(out, form, **kw)
    return out.getvalue()


def _rgb(content, white=None):
    return decode(content, "x.png", None, white).transpose(1, 2, 0)


# ------------------------------------------------------------------ predict sees what training saw
def _striped(rng, c, size, colour=True):
    "An image whose class shows at its sides only: what is cut from the middle says nothing."
    w, h = size
    a = rng.integers(90, 110, (h, w, 3), dtype=np.uint8)
    edge = max(1, w // 5)
    a[:, :edge] = a[:, -edge:] = (220, 60, 60) if c else (40, 200, 40)
    im = Image.fromarray(a)
    return im if colour else im.convert("L")


def _files(folder, rng, n, sizes, colour=True):
    for c in range(2):
        for i in range(n):
            path = folder / "ab"[c] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            _striped(rng, c, sizes[i % len(sizes)], colour).save(path)


SQUARE, WIDE = [(24, 24)], [(96, 48), (48, 96), (60, 60)]


def _folder(root, rng, sizes, colour):
    _files(root / "own", rng, 12, sizes, colour)
    return root / "own"


def _parted(root, rng, sizes, colour):
    for part, n in (("train", 10), ("test", 5)):
        _files(root / "own" / part, rng, n, sizes, colour)
    return root / "own"


def _table(root, rng, sizes, colour, header, row):
    _files(root, rng, 12, sizes, colour)
    rows = [row(c, i) for c in range(2) for i in range(12)]
    (root / "list.csv").write_text(header + "\n" + "\n".join(rows) + "\n")
    return root / "list.csv"


def _labels(root, rng, sizes, colour):
    return _table(
        root, rng, sizes, colour, "path,label", lambda c, i: f"{'ab'[c]}/{i}.png,{'ab'[c]}"
    )


def _split_column(root, rng, sizes, colour):
    return _table(
        root,
        rng,
        sizes,
        colour,
        "path,label,split",
        lambda c, i: f"{'ab'[c]}/{i}.png,{'ab'[c]},{'test' if i > 7 else 'train'}",
    )


def _targets(root, rng, sizes, colour):
    return _table(
        root,
        rng,
        sizes,
        colour,
        "path,height,weight",
        lambda c, i: f"{'ab'[c]}/{i}.png,{c + i / 100},{3 - 2 * c}",
    )


def _test_files(e):
    "The files of an experiment's test images, in the order of its predictions."
    path, part = Path(e.dataset), split_of(e).test
    listing = own_reader(path).read(path)
    return listing.test if part is None else [listing.train[i] for i in part]


@pytest.mark.parametrize("form", [_folder, _parted, _labels, _split_column, _targets])
@pytest.mark.parametrize(
    "sizes, size, colour",
    [(SQUARE, None, True), ([(30, 20)], None, False), (WIDE, 24, True), (WIDE, 24, False)],
)
def test_predict_gives_the_stored_predictions(tmp_path, form, sizes, size, colour):
    rng = np.random.default_rng(0)
    path = form(tmp_path, rng, sizes, colour)
    e = experiment(
        dataset=str(path),
        size=size,
        model="linear",
        epochs=3,
        batch_size=4,
        augment="none",
        lr=0.001,
        **({"loss": "mse"} if form is _targets else {}),
    )
    run(e, device=CPU)
    names, values, classes = classify(e.identity, _test_files(e), CPU)
    stored = predictions_of_test(e)
    if form is _targets:
        assert not classes and names == ["height", "weight"]
        np.testing.assert_allclose(values.numpy(), stored, **within("rounding"))
    else:
        assert classes and values.argmax(1).tolist() == stored.tolist() and len(stored)
    _, _, _, batches = prepared(e.identity, _test_files(e), CPU)
    d, part = load(str(path), size), split_of(e).test
    assert (batches.images.numpy() == (d.test if part is None else d.train[part])).all()
    assert tuple(batches.mean.flatten().numpy()) == tuple(np.float32(d.mean)) and tuple(
        batches.std.flatten().numpy()
    ) == tuple(np.float32(d.std))


def test_the_command_and_gradcam_see_whole_images(tmp_path):
    "The class of these photographs shows at their sides only, which a crop of the middle loses."
    path = _parted(tmp_path, np.random.default_rng(0), [(96, 48)], True)
    e = experiment(
        dataset=str(path),
        size=32,
        model="resnet18",
        width=4,
        epochs=6,
        batch_size=5,
        augment="none",
        lr=0.05,
    )
    result = run(e, device=CPU)
    files = _test_files(e)
    done = wavescat(
        "predict",
        e.identity,
        *files,
        "--top",
        "1",
        "--gradcam",
        tmp_path / "why.png",
        store=tmp_path / "runs",
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    called = [
        line.rpartition(": ")[2].split()[0]
        for line in done.stdout.splitlines()
        if line.startswith(str(tmp_path / "own"))
    ]
    assert called == ["ab"[k] for k in predictions_of_test(e)] and result["test_accuracy"] == 100
    assert called == ["ab"[k] for k in labels_of_test(e)]


def _mixed(folder, n=6):
    """Files of every kind in one set: grey of 12 bits, colours of 16, float, palette, CMYK,
    turned, transparent, 1 bit."""
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    for c in range(2):
        place = folder / "ab"[c]
        place.mkdir(parents=True)
        for i in range(n):
            a = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) // (1 + c)
            im = Image.fromarray(a)
            (place / f"{i}grey12.png").write_bytes(_png16(a[..., 0].astype(np.uint16) * 16))
            (place / f"{i}rgb16.png").write_bytes(_png16(a.astype(np.uint16) * 16))
            Image.fromarray(a[..., 0].astype(np.float32) / 255).save(place / f"{i}float.tif")
            im.quantize(16).save(place / f"{i}palette.png")
            im.convert("CMYK").save(place / f"{i}cmyk.jpg")
            im.save(place / f"{i}turned.jpg", exif=exif)
            im.convert("1").save(place / f"{i}bit.png")
            rgba = im.convert("RGBA")
            rgba.putalpha(Image.fromarray(a[..., 1]))
            rgba.save(place / f"{i}clear.png")
    return folder


def test_predict_reads_every_kind_of_file_as_training_did(tmp_path):
    path = _mixed(tmp_path / "own")
    e = experiment(
        dataset=str(path), size=16, model="linear", epochs=1, batch_size=8, augment="none", lr=0.001
    )
    run(e, device=CPU)
    _, values, _ = classify(e.identity, _test_files(e), CPU)
    assert values.argmax(1).tolist() == predictions_of_test(e).tolist()
    _, _, images, batches = prepared(e.identity, _test_files(e), CPU)
    assert (batches.images.numpy() == load(str(path), 16).train[split_of(e).test]).all() and images[
        "white"
    ] == {"integer": 4095, "float": 1}


def test_an_image_that_a_run_has_no_white_for(tmp_path):
    path = _folder(tmp_path, np.random.default_rng(0), SQUARE, True)
    for c in "ab":
        (path / c / "deep.png").write_bytes(_png16(np.full((24, 24), 4000)))
    e = experiment(
        dataset=str(path), model="linear", epochs=1, batch_size=4, augment="none", lr=0.001
    )
    run(e, device=CPU)
    (tmp_path / "bright.png").write_bytes(_png16(np.full((24, 24), 60000)))
    Image.fromarray(np.full((24, 24), 0.5, np.float32)).save(tmp_path / "f.tif")
    (tmp_path / "none.png").write_text("no image")
    for name, says in (
        ("bright.png", "holds values up to 60000, and white is 4095"),
        ("f.tif", "have no known white"),
        ("none.png", "no image that Pillow knows"),
    ):
        done = wavescat("predict", e.identity, tmp_path / name, store=tmp_path / "runs")
        assert (
            done.returncode == 2
            and done.stderr.count("\n") == 1
            and name in done.stderr
            and says in done.stderr
        ), done.stderr


def test_a_run_stored_without_white_is_read_as_before(tmp_path):
    path = _folder(tmp_path, np.random.default_rng(0), SQUARE, True)
    e = experiment(
        dataset=str(path), model="linear", epochs=1, batch_size=4, augment="none", lr=0.001
    )
    run(e, device=CPU)
    place = run_dir(e) / "images.json"
    known = json.loads(place.read_text())
    assert known.pop("white") == {}
    place.write_text(json.dumps(known))
    (tmp_path / "deep.png").write_bytes(_png16(np.full((24, 24), 257 * 40)))
    _, _, _, batches = prepared(e.identity, [tmp_path / "deep.png"], CPU)
    assert (batches.images == 40).all()


def test_training_and_test_images_of_two_sizes(tmp_path):
    rng = np.random.default_rng(0)
    _files(tmp_path / "own" / "train", rng, 3, [(24, 24)])
    _files(tmp_path / "own" / "test", rng, 3, [(20, 20)])
    with pytest.raises(
        ValueError, match="0.png is 20×20 pixels where the first is 24×24; choose one size"
    ):
        load(str(tmp_path / "own"))


def _striped_file(rng, path, c, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    _striped(rng, c, size).save(path)


def _kth_tips(rng, place):
    for c, kind in enumerate(("cork", "wool")):
        for sample, i in product("abcd", range(3)):
            path = place / "KTH-TIPS2-b" / kind / f"sample_{sample}" / f"{i}.png"
            _striped_file(rng, path, c, (200, 180))


def _covidx(rng, place):
    for part in ("train", "test"):
        rows = []
        for i in range(8):
            _striped_file(rng, place / part / f"{i}.png", i % 2, (70, 40))
            rows.append(f"p{part}{i} {i}.png {'positive' if i % 2 else 'negative'} x\n")
        (place / f"{part}.txt").write_text("".join(rows))


def _tiny_imagenet(rng, place):
    for c, kind in enumerate(("n01", "n02")):
        for i in range(6):
            path = place / "train" / kind / "images" / f"{kind}_{i}.JPEG"
            _striped_file(rng, path, c, (80, 50))
    rows = []
    for i in range(4):
        _striped_file(rng, place / "val" / "images" / f"val_{i}.JPEG", i % 2, (50, 90))
        rows.append(f"val_{i}.JPEG\tn0{1 + i % 2}\t0\t0\t1\t1\n")
    (place / "wnids.txt").write_text("n01\nn02\n")
    (place / "words.txt").write_text("n01\tcat\nn02\tdog\n")
    (place / "val" / "val_annotations.txt").write_text("".join(rows))


def _biomass(rng, place):
    rows = ["image_path,Sampling_Date,State,Species,target_name,target"]
    for i in range(10):
        _striped_file(rng, place / "train" / f"{i}.png", i % 2, (60, 30))
        green, dead, clover = 10 + i, 5 + i % 2, 2 + i % 3
        grams = (green, dead, clover, green + clover, green + clover + dead)
        for t, v in zip(BIOMASS_TARGETS, grams):
            rows.append(f"train/{i}.png,2015/1/{1 + i},NSW,grass,{t},{v}")
    (place / "train.csv").write_text("\n".join(rows) + "\n")


PUBLISHED = {  # name → its writer, and the settings of a run on it
    "kth-tips2-b": (_kth_tips, {"split": "sample", "split_seed": 0}),
    "covidx-cxr": (_covidx, {}),
    "tiny-imagenet": (_tiny_imagenet, {}),
    "csiro-biomass": (_biomass, {"loss": "mse"}),
}


def _published(root, name):
    """A small set in its publisher's layout, its images of another size and shape than the reader
    makes them; returns settings of a run on it."""
    write, settings = PUBLISHED[name]
    write(np.random.default_rng(0), root / "data" / SOURCES[name].folder)
    return settings


@pytest.mark.parametrize(
    "name, size",
    [
        ("kth-tips2-b", None),
        ("kth-tips2-b", 48),
        ("covidx-cxr", None),
        ("covidx-cxr", 32),
        ("tiny-imagenet", None),
        ("tiny-imagenet", 32),
        ("csiro-biomass", None),
        ("csiro-biomass", 32),
    ],
)
def test_predict_on_files_of_published_sets(tmp_path, name, size):
    settings = _published(tmp_path, name)
    e = experiment(
        dataset=name,
        size=size,
        model="linear",
        epochs=1,
        batch_size=4,
        augment="none",
        lr=1e-5,
        **settings,
    )
    run(e, device=CPU)
    listing, part = READERS[name].read(source_folder(name)), split_of(e).test
    files = listing.test if part is None else [listing.train[i] for i in part]
    _, values, classes = classify(e.identity, files, CPU)
    _, _, _, batches = prepared(e.identity, files, CPU)
    d = load(name, size)
    assert (batches.images.numpy() == (d.test if part is None else d.train[part])).all()
    if classes:
        assert values.argmax(1).tolist() == predictions_of_test(e).tolist()
    else:
        np.testing.assert_allclose(values.numpy(), predictions_of_test(e), **within("reordered"))


# ------------------------------------------------------------------ files as people have them
def _set(tmp_path, contents, size=None):
    "A set of two classes from files' contents: name → bytes; what becomes of each, (H, W, 3)."
    for c in "ab":
        for name, content in contents.items():
            (tmp_path / "own" / c).mkdir(parents=True, exist_ok=True)
            (tmp_path / "own" / c / name).write_bytes(content)
    d = load(str(tmp_path / "own"), size)
    return d, dict(zip(sorted(contents), d.train[: len(contents)].transpose(0, 2, 3, 1)))


RAMP = np.arange(64 * 64).reshape(64, 64)  # 0–4095: 12 bits


@pytest.mark.parametrize(
    "how",
    [
        "grey png",
        "colour png",
        "colour png with alpha",
        "grey png with alpha",
        "colour tiff",
        "big-endian tiff",
        "packed colour tiff",
        "signed tiff",
        "big-endian signed tiff",
        "32-bit tiff",
    ],
)
def test_values_of_12_bits_keep_their_greys(tmp_path, how):
    a = RAMP.astype(np.uint16)
    colours, opaque = np.stack([a] * 3, 2), np.full((64, 64, 1), 65535)
    content = {
        "grey png": lambda: _png16(a),
        "colour png": lambda: _png16(colours),
        "colour png with alpha": lambda: _png16(np.concatenate([colours, opaque], 2)),
        "grey png with alpha": lambda: _png16(np.concatenate([a[..., None], opaque], 2)),
        "colour tiff": lambda: _tiff(colours),
        "big-endian tiff": lambda: _tiff(a, byteorder=">"),
        "packed colour tiff": lambda: _tiff(colours, compression="zlib", byteorder=">"),
        "signed tiff": lambda: _tiff(a.astype(np.int16)),
        "big-endian signed tiff": lambda: _tiff(a.astype(np.int16), byteorder=">"),
        "32-bit tiff": lambda: _tiff(a.astype(np.int32)),
    }[how]()
    d, pixels = _set(tmp_path, {"x.tif" if "tiff" in how else "x.png": content})
    (seen,) = pixels.values()
    assert d.white == {"integer": 4095} and (seen == np.rint(RAMP / 4095 * 255)[..., None]).all()


def test_brightness_is_comparable_within_a_set(tmp_path):
    "The brightest image of a set decides, of training and test images together."
    grey = lambda v: _png16(np.full((8, 8), v))
    d, pixels = _set(tmp_path, {"dark.png": grey(1000), "light.png": grey(4000)})
    assert (
        d.white == {"integer": 4095}
        and pixels["dark.png"].max() == 62
        and pixels["light.png"].max() == 249
    )
    d, pixels = _set(
        tmp_path, {"dark.png": grey(1000), "light.png": grey(4000), "white.png": grey(65535)}
    )
    assert d.white == {"integer": 65535} and [
        pixels[f"{n}.png"].max() for n in ("dark", "light", "white")
    ] == [4, 16, 255]
    for part, value in (("train", 1000), ("test", 4000)):
        for c in "ab":
            (tmp_path / "two" / part / c).mkdir(parents=True)
            (tmp_path / "two" / part / c / "x.png").write_bytes(grey(value))
    d = load(str(tmp_path / "two"))
    assert d.train.max() == 62 and d.test.max() == 249


def test_whole_16_bits_stay_as_they_were(tmp_path):
    a = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    _, pixels = _set(tmp_path, {"x.png": _png16(a)})
    assert (pixels["x.png"] == np.rint(a / 257)[..., None]).all()


@pytest.mark.parametrize("top, white", [(1, 1), (255, 255), (4095, 4095), (65535, 65535)])
def test_floats(tmp_path, top, white):
    a = np.linspace(0, top, 64 * 64, dtype=np.float32).reshape(64, 64)
    d, pixels = _set(tmp_path, {"x.tif": _tiff(a), "y.tif": _tiff(a / 2)})
    assert (
        d.white == {"float": white}
        and (np.abs(pixels["x.tif"][..., 0] - a / top * 255) <= 0.51).all()
        and pixels["y.tif"].max() in (127, 128)
    )


@pytest.mark.parametrize(
    "values, says",
    [
        (np.full((8, 8), -1, np.int16), "x.tif can't be decoded .*negative values, down to -1"),
        (np.full((8, 8), np.nan, np.float32), "x.tif can't be decoded .*aren't finite"),
        (np.full((8, 8), np.inf, np.float32), "aren't finite"),
        (np.full((8, 8), -0.5, np.float32), "negative values"),
        (
            np.full((8, 8), 1.2, np.float32),
            "x.tif holds values up to 1.2, where white must be 1, or 255 and more",
        ),
        (np.full((8, 8), 1e12, np.float32), "x.tif holds values up to 1e[+]12, more than 32 bits"),
        (np.full((3, 8, 8), 9, np.uint16), "x.tif can't be decoded .*stored apart"),
    ],
)
def test_what_is_no_brightness_is_refused(tmp_path, values, says):
    content = _tiff(values, **({"planarconfig": "separate"} if values.ndim == 3 else {}))
    with pytest.raises(ValueError, match=says) as e:
        _set(tmp_path, {"x.tif": content})
    assert "\n" not in str(e.value) and not [p for p in cache_dir().iterdir() if p.is_dir()]


def test_floats_on_two_scales_are_refused(tmp_path):
    a = np.full((8, 8), 0.5, np.float32)
    with pytest.raises(
        ValueError, match="small.tif holds values up to 0.5 and .*large.tif up to 200: scale"
    ):
        _set(tmp_path, {"small.tif": _tiff(a), "large.tif": _tiff(400 * a)})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16, "16 colour"])
def test_png_is_turned_as_its_camera_says(orientation, bits):
    small = np.arange(12).reshape(3, 4) * 20
    colour = np.stack([small] * 3, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    chunk = exif.tobytes().removeprefix(b"Exif\0\0")
    packed = (
        struct.pack(">I", len(chunk))
        + b"eXIf"
        + chunk
        + struct.pack(">I", zlib.crc32(b"eXIf" + chunk))
    )
    content = {
        8: lambda: _saved(Image.fromarray(small.astype(np.uint8)), exif=exif),
        16: lambda: _png16(small * 257, packed),
        "16 colour": lambda: _png16(colour * 257, packed),
    }[bits]()
    turned = {
        1: small,
        2: small[:, ::-1],
        3: small[::-1, ::-1],
        4: small[::-1],
        5: small.T,
        6: small.T[:, ::-1],
        7: small.T[::-1, ::-1],
        8: small.T[::-1],
    }[orientation]
    assert (_rgb(content)[..., 0] == turned).all()


@pytest.mark.parametrize(
    "mode",
    [
        "RGBA",
        "LA",
        "PA",
        "P key",
        "RGB key",
        "L key",
        "16-bit RGBA",
        "16-bit LA",
        "16-bit grey key",
        "16-bit colour key",
    ],
)
def test_what_is_transparent_lies_on_white(mode):
    "A hidden colour, dark, under the left half; what is opaque stays."
    grey = np.full((4, 6), 100, np.uint8)
    grey[:, :3] = 7
    alpha = np.full((4, 6), 255, np.uint8)
    alpha[:, :3] = 0
    rgb, wide = np.stack([grey] * 3, 2), grey.astype(np.uint16) * 257
    if mode in ("RGBA", "LA"):
        im = Image.fromarray(rgb if mode == "RGBA" else grey).convert(mode)
        im.putalpha(Image.fromarray(alpha))
        content = _saved(im)
    elif mode == "PA":
        im = Image.fromarray(grey).convert("P").convert("PA")
        im.putalpha(Image.fromarray(alpha))
        assert im.mode == "PA"
        seen = np.asarray(on_white(im))
        assert (seen[:, :3] == 255).all() and (seen[:, 3:] == 100).all()
        return
    elif mode == "P key":
        im = Image.fromarray((grey == 100).astype(np.uint8), "P")
        im.putpalette([7] * 3 + [100] * 3)
        content = _saved(im, transparency=0)
    elif mode == "RGB key":
        content = _saved(Image.fromarray(rgb), transparency=(7, 7, 7))
    elif mode == "L key":
        content = _saved(Image.fromarray(grey), transparency=7)
    elif mode == "16-bit RGBA":
        content = _png16(
            np.concatenate([np.stack([wide] * 3, 2), alpha[..., None].astype(np.uint16) * 257], 2)
        )
    elif mode == "16-bit LA":
        content = _png16(np.stack([wide, alpha.astype(np.uint16) * 257], 2))
    else:
        key = struct.pack(">H", 7 * 257) * (3 if "colour" in mode else 1)
        chunk = (
            struct.pack(">I", len(key))
            + b"tRNS"
            + key
            + struct.pack(">I", zlib.crc32(b"tRNS" + key))
        )
        content = _png16(np.stack([wide] * 3, 2) if "colour" in mode else wide, chunk)
    seen = _rgb(content)
    assert (seen[:, :3] == 255).all() and (seen[:, 3:] == 100).all()


def test_half_transparent_and_wholly_opaque():
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert _rgb(_saved(half)).min() == _rgb(_saved(half)).max() == 127
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    assert (_rgb(_saved(im.convert("RGBA"))) == np.asarray(im)).all()


def test_black_may_be_the_highest_value(tmp_path):
    a = np.array([[0, 4095]] * 4, np.uint16)
    _, pixels = _set(tmp_path, {"x.tif": _tiff(a, photometric="miniswhite")})
    assert pixels["x.tif"][0, :, 0].tolist() == [255, 0]


def test_a_pgm_says_what_white_is(tmp_path):
    content = b"P5 2 1 1023\n" + np.array([511, 1023], ">u2").tobytes()
    _, pixels = _set(tmp_path, {"x.pgm": content})
    assert pixels["x.pgm"][0, :, 0].tolist() == [127, 255]


def test_of_several_pictures_the_first_is_taken_and_that_is_said(tmp_path):
    frames = [Image.new("L", (8, 8), v) for v in (50, 90, 130)]
    d, pixels = _set(
        tmp_path,
        {
            "film.gif": _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            "pages.tif": _saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
            "one.png": _saved(frames[0]),
        },
    )
    assert all((p == 50).all() for p in pixels.values()) and any(
        "4 files with several pictures, such as film.gif: the first is taken" in n for n in d.notes
    )
    load.cache_clear()
    assert any("4 files with several" in n for n in load(str(tmp_path / "own")).notes)


def test_one_bit(tmp_path):
    _, pixels = _set(
        tmp_path,
        {"x.png": _saved(Image.fromarray(np.array([[0, 255]] * 4, np.uint8)).convert("1"))},
    )
    assert pixels["x.png"][0, :, 0].tolist() == [0, 255]


# ------------------------------------------------------------------ the demos
def test_demos_read_images_as_the_rest_does():
    ramp = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (96, 1))
    eight = grey_square(_saved(Image.fromarray(np.rint(ramp * 255).astype(np.uint8))), "x.png")
    assert eight[0, 0] == 0 and eight[0, -1] == 1
    for content in (
        _tiff(ramp),
        _tiff(ramp * 255),
        _tiff(np.rint(ramp * 4095).astype(np.uint16)),
        _png16(np.rint(ramp * 65535)),
        _png16(np.stack([np.rint(ramp * 4095)] * 3, 2)),
    ):
        assert (grey_square(content, "x.tif") - eight).abs().max() <= 1 / 255 + 1e-6
    clear = Image.new("RGBA", (96, 96), (0, 0, 0, 0))
    assert (grey_square(_saved(clear), "x.png") == 1).all()
    exif = Image.Exif()
    exif[0x0112] = 3
    assert (
        grey_square(
            _saved(Image.fromarray(np.rint(ramp * 255).astype(np.uint8)), exif=exif), "x.png"
        )
        == eight.flip(0, 1)
    ).all()
    for content in (b"no image", _tiff(-ramp), _tiff(ramp * np.nan)):
        with pytest.raises(
            ValueError, match="^x.tif can't be read as an image: choose a PNG or JPEG file$"
        ):
            grey_square(content, "x.tif")


# ------------------------------------------------------------------ files that change while a process lives
def _grey(path, value, size=8, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value,) * 3).save(path, **kw)


def _plain(folder, value=50, n=3):
    for c in "ab":
        for i in range(n):
            _grey(folder / c / f"{i}.bmp", value + i)
    return folder


def test_an_image_rewritten_in_place_is_read_again(tmp_path):
    "Of the same size; with the time of before put back; at once after the set was read."
    own = _plain(tmp_path / "own")
    path = own / "a" / "0.bmp"
    for value in range(60, 70):
        before = path.stat()
        with open(path, "r+b") as f:
            f.seek(before.st_size - 3 * 64)
            f.write(bytes([value]) * 3 * 64)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (
            path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
        )
        assert (load(str(own)).train[0] == value).all()


@pytest.mark.parametrize(
    "how", ["added", "removed", "renamed", "swapped", "another link", "another class"]
)
def test_a_folder_that_changes(tmp_path, how):
    own = _plain(tmp_path / "own")
    outside = tmp_path / "outside"
    for i in range(2):
        _grey(outside / f"{i}.bmp", 200 + i)
    (own / "a" / "link.bmp").symlink_to(outside / "0.bmp")
    first = load(str(own))
    same = load(str(own))
    assert same is first
    if how == "added":
        _grey(own / "b" / "9.bmp", 9)
    if how == "removed":
        (own / "b" / "2.bmp").unlink()
    if how == "renamed":
        (own / "b" / "2.bmp").rename(own / "b" / "00.bmp")
    if how == "swapped":
        (own / "a" / "0.bmp").rename(tmp_path / "kept")
        (own / "a" / "1.bmp").rename(own / "a" / "0.bmp")
        (tmp_path / "kept").rename(own / "a" / "1.bmp")
    if how == "another link":
        (own / "a" / "link.bmp").unlink()
        (own / "a" / "link.bmp").symlink_to(outside / "1.bmp")
    if how == "another class":
        _plain(own / "more", n=1)
        os.rename(own / "more" / "a", own / "c")
        os.rename(own / "more" / "b" / "0.bmp", own / "c" / "1.bmp")
        os.rmdir(own / "more" / "b")
        os.rmdir(own / "more")
    d = load(str(own))
    load.cache_clear()
    anew = load(str(own))
    assert (
        d.checksum == anew.checksum != first.checksum
        and (d.train == anew.train).all()
        and d.classes == anew.classes
    )


def test_labels_swapped_in_a_csv(tmp_path):
    "A kernel's second run is of the new labels, and its first result is stale."
    _plain(tmp_path)
    path = tmp_path / "list.csv"

    def write(x, y):
        path.write_text(
            "path,label\n"
            + "".join(f"{c}/{i}.bmp,{x if c == 'a' else y}\n" for c in "ab" for i in range(3))
        )

    write("x", "y")
    e = experiment(
        dataset=str(path), model="linear", epochs=1, batch_size=2, augment="none", lr=1e-4
    )
    one = run(e, device=CPU)
    assert load(str(path)).train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    write("y", "x")
    assert load(str(path)).train_labels.tolist() == [1, 1, 1, 0, 0, 0] and cached_result(e)["stale"]
    assert run(e, device=CPU)["data"] == load(str(path)).checksum != one["data"]


def test_another_folder_of_the_same_name(tmp_path, monkeypatch):
    for place, value in (("here", 10), ("there", 90)):
        _plain(tmp_path / place / "leaves", value)
    e = experiment(
        dataset="leaves", model="linear", epochs=1, batch_size=2, augment="none", lr=1e-4
    )
    seen = {}
    for place in ("here", "there", "here"):
        monkeypatch.chdir(tmp_path / place)
        result = run(e, device=CPU)
        assert (
            load("leaves").train.min() == {"here": 10, "there": 90}[place]
            and result["data"] == load("leaves").checksum
        )
        assert seen.setdefault(place, result["data"]) == result["data"]
    assert seen["here"] != seen["there"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="unknown dataset 'leaves'"):
        load("leaves")


def test_a_relative_folder_of_data_sets_and_another_directory(tmp_path, monkeypatch):
    for place in ("here", "there"):
        _published(tmp_path / place, "kth-tips2-b")
    other = (
        tmp_path
        / "there"
        / "data"
        / SOURCES["kth-tips2-b"].folder
        / "KTH-TIPS2-b"
        / "cork"
        / "sample_a"
        / "0.png"
    )
    _grey(other, 3)
    monkeypatch.setenv("WAVESCAT_DATA", "data")
    monkeypatch.setenv("WAVESCAT_CACHE", "cache")
    sums = []
    for place in ("here", "there", "here"):
        monkeypatch.chdir(tmp_path / place)
        sums.append(load("kth-tips2-b", 16).checksum)
        assert (tmp_path / place / "cache").is_dir()
    assert sums[0] == sums[2] != sums[1]


@pytest.mark.parametrize("name", ["kth-tips2-b", "covidx-cxr", "tiny-imagenet", "csiro-biomass"])
def test_an_image_of_a_published_set_rewritten_in_place(tmp_path, name):
    _published(tmp_path, name)
    first = load(name, 16)
    path = READERS[name].read(source_folder(name)).train[0]
    before, content = path.stat(), _saved(Image.new("RGB", (50, 50), (9, 9, 9)), "PNG")
    path.write_bytes(content.ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    d = load(name, 16)
    assert (d.train[0] == 9).all() and d.checksum != first.checksum and (first.train[0] != 9).any()


def test_a_set_put_where_data_sets_lie_later(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="covidx-cxr: .* is missing"):
        load("covidx-cxr")
    _published(tmp_path, "covidx-cxr")
    assert len(load("covidx-cxr", 16).train) == 8
    monkeypatch.setenv("WAVESCAT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="covidx-cxr: .*elsewhere.* is missing"):
        load("covidx-cxr", 16)


def test_a_check_is_made_again_when_files_change(tmp_path):
    "What could be run can't be run any more, and the other way round: images, the split's file, the weights."
    own = _plain(tmp_path / "own", n=6)
    linear = dict(model="linear", epochs=1, batch_size=2, augment="none", lr=1e-4)
    e = experiment(dataset=str(own), per_class=4, **linear)
    check(e)
    for i in range(1, 6):
        (own / "a" / f"{i}.bmp").unlink()
    with pytest.raises(ValueError, match="class a has 1 image"):
        check(e)
    for i in range(1, 6):
        _grey(own / "a" / f"{i}.bmp", 50 + i)
    check(e)
    from wavescat.data.split_files import save_split
    from wavescat.data.split_indices import Split

    d, place = load(str(own)), tmp_path / "split.json"
    save_split(Split(np.arange(4), np.arange(0), np.arange(4, 8)), d, place)
    e = experiment(dataset=str(own), split=str(place), **linear)
    check(e)
    place.write_text("{}")
    with pytest.raises(ValueError, match="is no split"):
        check(e)
    weights = tmp_path / "w.safetensors"
    save_split(Split(np.arange(4), np.arange(0), np.arange(4, 8)), d, place)
    save_tensors(build_model(e).state_dict(), tmp_path / "w")
    e = experiment(
        dataset=str(own),
        model="linear",
        epochs=0,
        augment="none",
        split=str(place),
        weights=str(weights),
    )
    check(e)
    weights.write_bytes(b"none")
    with pytest.raises(ValueError, match="isn't a file of tensors alone"):
        check(e)


def test_files_are_assume_files_unchanged_for_many_experiments(tmp_path, monkeypatch):
    own, looks = _plain(tmp_path / "own"), []
    marks = file_state.file_marks
    monkeypatch.setattr(file_state, "file_marks", lambda paths: looks.append(1) or marks(paths))
    load(str(own))
    looks.clear()
    with assume_files_unchanged():
        for _ in range(5):
            load(str(own))
    assert len(looks) == 1
    for _ in range(5):
        load(str(own))
    assert len(looks) == 6
    from wavescat.training.plan import plan

    looks.clear()
    plan(
        [
            experiment(
                dataset=str(own), model="linear", epochs=1, batch_size=2, augment="none", seed=s
            )
            for s in range(5)
        ]
    )
    assert len(looks) == 1


def test_predict_on_grey_images_of_an_embedded_set(tmp_path):
    e = experiment(model="linear", epochs=2, per_class=20, augment="none", lr=0.001)
    run(e, device=CPU)
    images, files = load("textures").test[::20], []
    for i, image in enumerate(images):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(image[0]).save(files[-1])
    _, values, _ = classify(e.identity, files, CPU)
    assert values.argmax(1).tolist() == predictions_of_test(e)[::20].tolist()
    _, _, _, batches = prepared(e.identity, files, CPU)
    assert (batches.images.numpy() == images).all()
