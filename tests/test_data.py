"""Data sets: small ones in the publishers' layouts, a server that misbehaves, damaged files. One
clear error each, and nothing left behind."""

import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from layouts import RNG, mnist_files, random_image, tiny_imagenet
from PIL import Image, features
from tolerances import within

from wavescat.data import own_folder
from wavescat.data.archive import unpack
from wavescat.data.decode import decode
from wavescat.data.download import fetch
from wavescat.data.embedded import PHOTOGRAPHS, textures
from wavescat.data.folders import cache_dir, data_dir, source_folder
from wavescat.data.load import DATASETS, load
from wavescat.data.readers import READERS
from wavescat.data.sources import SOURCES, FileInfo, Source, sources_table
from wavescat.data.split_files import save_split
from wavescat.data.splits import split
from wavescat.data.verify import verify_set

CLASSES = [f"c{i}" for i in range(10)]


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    "Data and decoded sets in folders of this test; nothing remembered."
    real = os.environ.get("WAVESCAT_DATA")
    monkeypatch.setenv("WAVESCAT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WAVESCAT_CACHE", str(tmp_path / "cache"))
    for name in SOURCES:
        monkeypatch.delenv(f"WAVESCAT_{name.upper().replace('-', '_')}_URL", raising=False)
    load.cache_clear()
    yield real
    load.cache_clear()


def _left(folder):
    return (
        sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))
        if folder.is_dir()
        else []
    )


class Server:
    """Serves one body in the way that `how` says: well, slowly, cut off, with a wrong length, or
    not at all the first `failing` times."""

    def __init__(self, body, how="well", failing=0):
        self.body, self.how, self.failing, self.asked = body, how, failing, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                server.asked += 1
                body = (
                    server.body[self.path.rsplit("/", 1)[-1]]
                    if isinstance(server.body, dict)
                    else server.body
                )
                how = "cut off" if server.asked <= server.failing else server.how
                lengths = {"says too much": len(body) + 1000, "says too little": len(body) // 2}
                self.send_response(500 if how == "fails" else 200)
                self.send_header("Content-Length", str(lengths.get(how, len(body))))
                self.end_headers()
                try:
                    if how == "slow":
                        for i in range(0, len(body), -(-len(body) // 5)):
                            self.wfile.write(body[i : i - (-len(body) // 5)])
                            self.wfile.flush()
                            time.sleep(0.05)
                    else:
                        self.wfile.write(body[: len(body) // 3] if how == "cut off" else body)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                if how in ("cut off", "says too much"):
                    self.close_connection = True

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.http.shutdown()
        self.http.server_close()


def _tar(members, mode="w:gz"):
    "A tar of (name or TarInfo, content)."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def cifar(monkeypatch):
    "A hundredth of CIFAR-10 in the official layout: the archive, with its checksums in the table of sources."
    rng = np.random.RandomState(0)

    def batch(n):
        return pickle.dumps(
            {
                b"data": rng.randint(0, 256, (n, 3072), dtype=np.uint8),
                b"labels": list(np.arange(n) % 10),
            }
        )

    contents = {f"data_batch_{i}": batch(100) for i in range(1, 6)} | {
        "test_batch": batch(100),
        "batches.meta": pickle.dumps({b"label_names": [c.encode() for c in CLASSES]}),
    }
    archive = _tar([(f"cifar-10-batches-py/{name}", content) for name, content in contents.items()])
    md5 = lambda c: FileInfo("md5:" + hashlib.md5(c).hexdigest())
    monkeypatch.setitem(
        SOURCES,
        "cifar10",
        SOURCES["cifar10"]._replace(
            files={"cifar-10-python.tar.gz": md5(archive)},
            inside={n: md5(c) for n, c in contents.items()},
            unpacked=10**7,
        ),
    )
    return archive


# ------------------------------------------------------------------ fetching
@pytest.mark.parametrize("how", ["well", "slow", "fails at first"])
def test_fetched_verified_and_read(cifar, how, monkeypatch):
    with Server(cifar, how, failing=2 if how == "fails at first" else 0) as server:
        monkeypatch.setenv("WAVESCAT_CIFAR10_URL", server.url + "/cifar-10-python.tar.gz")
        d = load("cifar10")
        assert server.asked == (3 if how == "fails at first" else 1)
    assert (
        d.train.shape == (500, 3, 32, 32)
        and d.test.shape == (100, 3, 32, 32)
        and d.classes[3] == "c3"
        and isinstance(d.train, np.memmap)
    )
    assert (
        _left(data_dir()) == ["cifar-10-batches-py"] and len(_left(source_folder("cifar10"))) == 7
    )
    raw = pickle.loads((source_folder("cifar10") / "data_batch_2").read_bytes(), encoding="bytes")[
        b"data"
    ]
    assert (d.train[100:200].reshape(100, -1) == raw).all()


@pytest.mark.parametrize(
    "how, error, says",
    [
        ("cut off", FileNotFoundError, "can't be fetched"),
        ("says too much", FileNotFoundError, "can't be fetched"),
        ("says too little", ValueError, "isn't the official file"),
        ("fails", FileNotFoundError, "can't be fetched"),
    ],
)
def test_a_server_that_misbehaves(cifar, how, error, says):
    with Server(cifar, how) as server:
        with pytest.raises(
            error, match=f"cifar10: .*{says}.*--mirror or WAVESCAT_CIFAR10_URL"
        ) as e:
            fetch("cifar10", server.url, progress=False)
    assert "\n" not in str(e.value) and _left(data_dir()) == []


def test_no_server():
    with pytest.raises(
        FileNotFoundError, match="is missing and .* can't be fetched.*WAVESCAT_DATA"
    ):
        fetch("cifar10", "http://127.0.0.1:9/x.tar.gz", progress=False)
    assert _left(data_dir()) == []


def test_another_archive_than_the_official_one(cifar):
    with Server(_tar([("cifar-10-batches-py/data_batch_1", b"x")])) as server:
        with pytest.raises(ValueError, match="isn't the official file"):
            fetch("cifar10", server.url, progress=False)
    assert _left(data_dir()) == []


def test_two_processes_fetch_at_once(cifar):
    results = []
    with Server(cifar, "slow") as server:
        both = [
            threading.Thread(
                target=lambda: results.append(fetch("cifar10", server.url, progress=False))
            )
            for _ in range(2)
        ]
        for t in both:
            t.start()
        for t in both:
            t.join()
        assert server.asked == 1 and results == [source_folder("cifar10")] * 2


def test_what_a_killed_fetch_left_is_cleared(cifar):
    left = data_dir() / ".cifar10-fetching-abc"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    with Server(cifar) as server:
        fetch("cifar10", server.url, progress=False)
    assert _left(data_dir()) == ["cifar-10-batches-py"]


def test_an_unknown_checksum_is_recorded_and_held_to(monkeypatch):
    first, second = _tar([("set/a", b"1")], "w"), _tar([("set/a", b"2")], "w")
    monkeypatch.setitem(
        SOURCES, "set", Source("Set", "", "", "", "set", "x", {"set.tar": FileInfo()}, {}, 100)
    )
    for body, fine in ((first, True), (first, True), (second, False)):
        with Server(body) as server:
            if fine:
                assert (fetch("set", server.url, progress=False) / "a").read_bytes() == b"1"
            else:
                with pytest.raises(
                    ValueError, match="set.tar isn't what was fetched first.*checksums.json"
                ):
                    fetch("set", server.url, progress=False)
        if source_folder("set").is_dir():
            (source_folder("set") / "a").unlink()
            source_folder("set").rmdir()


def _zip(name, content, mode=0):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        z.writestr(info, content)
    return out.getvalue()


def _link(name, to):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


@pytest.mark.parametrize(
    "archive, says",
    [
        (_tar([("../evil", b"x")]), "lies outside"),
        (_tar([("/evil", b"x")]), "lies outside"),
        (_tar([("a/../../evil", b"x")]), "lies outside"),
        (_tar([(_link("a", "/etc/passwd"), b"")]), "is a link"),
        (_zip("../evil", b"x"), "lies outside"),
        (_zip("/evil", b"x"), "lies outside"),
        (_zip("..\\evil", b"x"), "lies outside"),
        (_zip("C:evil", b"x"), "lies outside"),
        (_zip("a", b"/etc/passwd", 0o120777), "is a link"),
        (_tar([("a", b"x" * 2000)]), "larger than"),
        (_zip("a", b"x" * 2000), "larger than"),
        (_tar([("a", os.urandom(999))])[:-300], "damaged"),
        (_zip("a", b"x" * 999)[:-30], "damaged"),
        (b"no archive", "damaged"),
        (_zip("a", b"hello").replace(b"hello", b"hxllo"), "damaged"),
    ],
)
def test_archives_that_cannot_be_trusted(tmp_path, archive, says):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "archive").write_bytes(archive)
    with pytest.raises(ValueError, match=f"archive .*{says}") as e:
        unpack(tmp_path / "in" / "archive", tmp_path / "in" / "out", 1000)
    assert (
        "\n" not in str(e.value)
        and not (tmp_path / "evil").exists()
        and not (tmp_path / "in" / "evil").exists()
        and not list((tmp_path / "in" / "out").glob("*/*"))
    )


def test_sets_that_need_an_account():
    for name in ("covidx-cxr", "csiro-biomass"):
        with pytest.raises(
            ValueError,
            match=f"run `kaggle .*`, unpack what comes into .*wavescat data verify {name}",
        ):
            fetch(name)
        with pytest.raises(
            FileNotFoundError, match=f"{name}: .* is missing; it needs an account: run `kaggle"
        ):
            load(name)


# ------------------------------------------------------------------ CIFAR-10's files
def _put(archive):
    data_dir().mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as t:
        t.extractall(data_dir(), filter="data")


def test_nothing_is_unpickled_before_it_is_verified(cifar):
    _put(cifar)
    load("cifar10")
    load.cache_clear()

    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    (source_folder("cifar10") / "data_batch_3").write_bytes(pickle.dumps(Bomb()))
    before = _left(cache_dir())
    with pytest.raises(
        ValueError, match="data_batch_3 is damaged: expected md5 .*, found .*; delete"
    ):
        load("cifar10")
    assert _left(cache_dir()) == before
    whole, lines = verify_set("cifar10")
    assert not whole and sum("damaged" in line for line in lines) == 1


def test_a_file_is_missing(cifar):
    _put(cifar)
    load("cifar10")
    load.cache_clear()
    (source_folder("cifar10") / "test_batch").unlink()
    with pytest.raises(
        FileNotFoundError,
        match="test_batch is missing, .*move .* away and fetch it again: wavescat data fetch cifar10",
    ):
        load("cifar10")


def test_verify_says_whole(cifar):
    _put(cifar)
    assert verify_set("cifar10")[0] is False  # 500 of 50,000: a whole file isn't a whole set
    assert "500 of 50,000 training images" in "\n".join(verify_set("cifar10")[1])


def test_a_photograph_is_damaged(monkeypatch):
    monkeypatch.setitem(PHOTOGRAPHS, "brick", PHOTOGRAPHS["brick"]._replace(sha256="0" * 64))
    with pytest.raises(ValueError, match="brick.png is damaged: expected sha256 000.*pip install"):
        textures()


# ------------------------------------------------------------------ the other layouts


def test_mnist_from_four_files_by_content(monkeypatch):
    folder, arrays, packed = mnist_files(monkeypatch)
    folder.rmdir()
    with Server(packed) as server:
        fetch("mnist", server.url, progress=False)
    d = load("mnist")
    assert (
        (d.train[:, 0] == arrays["train-images-idx3-ubyte.gz"]).all()
        and d.test_labels.tolist() == list(range(10)) * 2
        and d.classes[7] == "7"
    )
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(packed["t10k-labels-idx1-ubyte.gz"][:-9])
    load.cache_clear()
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte.gz is damaged"):
        load("mnist")


def test_tiny_imagenet(tmp_path):
    folder = source_folder("tiny-imagenet")
    tiny_imagenet(folder)
    (folder / "train" / "n02" / "images" / "._n02_3.JPEG").write_bytes(b"what a Mac leaves")
    d = load("tiny-imagenet")
    assert (
        d.train.shape == (36, 3, 64, 64)
        and d.test_labels.tolist() == [0, 1, 2, 0, 1, 2]
        and d.classes == ("crane (n01)", "crane (n02)", "cat")
    )
    assert (d.train[3, 0] == d.train[3, 1]).all() and (
        d.train[2, 0] != d.train[2, 1]
    ).any()  # grey became RGB
    expected = np.asarray(
        Image.open(folder / "train" / "n02" / "images" / "n02_10.JPEG")
    ).transpose(2, 0, 1)
    assert (d.train[12 + 10] == expected).all()  # n02_10 comes after n02_9
    (folder / "val" / "images" / "val_4.JPEG").unlink()
    load.cache_clear()
    before = _left(cache_dir())
    with pytest.raises(
        FileNotFoundError, match="val_4.JPEG is missing, though a list of the set names it"
    ):
        load("tiny-imagenet")
    assert _left(cache_dir()) == before and verify_set("tiny-imagenet")[0] is False
    random_image(folder / "val" / "images" / "val_4.JPEG", 64)
    photograph = folder / "train" / "n03" / "images" / "n03_5.JPEG"
    photograph.write_bytes(photograph.read_bytes()[:200])
    with pytest.raises(ValueError, match="n03_5.JPEG can't be decoded .*replace it"):
        load("tiny-imagenet")
    assert _left(cache_dir()) == before


def test_kth(tmp_path):
    for c in ("cork", "wool", "linen"):
        for s in "abcd":
            for i in range(3):
                random_image(
                    source_folder("kth-tips2-b")
                    / "KTH-TIPS2-b"
                    / c
                    / f"sample_{s}"
                    / f"{s}{i}.png",
                    (30, 28),
                )
    d = load("kth-tips2-b")
    assert (
        d.train.shape == (36, 3, 200, 200)
        and d.classes == ("cork", "linen", "wool")
        and d.info["sample"].tolist() == list("aaabbbcccddd") * 3
        and len(d.test) == 0
    )
    s = split(d, "sample", seed=1)
    assert (
        set(d.info["sample"][s.train]) == {"b"}
        and len(s.train) == 9
        and set(d.info["sample"][s.test]) == set("acd")
        and len(s.test) == 27
    )
    cork = source_folder("kth-tips2-b") / "KTH-TIPS2-b" / "cork"
    (cork / "sample_a" / "a2.png").rename(cork / "sample_b" / "a2.png")
    load.cache_clear()  # the same images in the same order, of another sample
    assert load("kth-tips2-b").info["sample"].tolist()[:4] == list("aabb")


def test_covidx(tmp_path):
    folder = source_folder("covidx-cxr")
    lines = [
        ("5", "ARDSSevere.png", "negative", "RGBA", {}),
        ("COVID 1", "COVID(1).png", "positive", "I;16", {}),
        ("9", "nine.jpg", "positive", "RGB", {}),
        ("10", "ten.jpeg", "negative", "L", {}),
    ]
    for part in ("train", "test"):
        for n, (_, file, _, mode, _) in enumerate(lines):
            random_image(folder / part / file, (20 + n, 30 - n), mode)
        (folder / f"{part}.txt").write_text(
            "".join(f"{who} {file} {label} source\n" for who, file, label, *_ in lines)
        )
    d = load("covidx-cxr")
    assert (
        d.train.shape == (4, 3, 260, 260)
        and d.test_labels.tolist() == [0, 1, 1, 0]
        and d.classes == ("negative", "positive")
    )
    s = split(d, per_class=1, seed=3)
    assert sorted(d.train_labels[s.train]) == [0, 1]
    (folder / "train.txt").write_text("5 ARDSSevere.png maybe source\n")
    load.cache_clear()
    with pytest.raises(
        ValueError, match="train.txt, line 1: expected patient, file, negative or positive"
    ):
        load("covidx-cxr")


def _biomass(wrong=None):
    folder = source_folder("csiro-biomass")
    rows = [
        "sample_id,image_path,Sampling_Date,State,Species,Pre_GSHH_NDVI,Height_Ave_cm,target_name,target"
    ]
    for i in range(10):
        random_image(folder / "train" / f"ID{i}.jpg", (10, 20))
        green, dead, clover = i, 2 * i, 1.5
        values = {
            "Dry_Clover_g": clover,
            "Dry_Dead_g": dead,
            "Dry_Green_g": green,
            "Dry_Total_g": green + clover + dead + (1 if i == 3 else 0),
            "GDM_g": green + clover,
        }
        if wrong and i == 4:
            values["GDM_g"] = wrong
        common = f"train/ID{i}.jpg,9/{i}/2015,Tas,Ryegrass,.6,4"
        rows += [f"ID{i}__{t},{common},{t},{v}" for t, v in values.items()]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_biomass():
    _biomass()
    d = load("csiro-biomass")
    assert (
        d.train.shape == (10, 3, 10, 20)
        and d.targets == ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
        and d.train_labels[2].tolist() == [2, 4, 1.5, 3.5, 7.5]
    )
    assert (
        d.info["species"][0] == "Ryegrass"
        and d.info["date"][1] == "9/1/2015"
        and d.notes[:2]
        == (
            "GDM = Green + Clover holds to 0.01 g in 10 of 10 images",
            "Total = GDM + Dead holds to 0.01 g in 9 of 10 images",
        )
    )
    assert [len(p) for p in split(d, validation=2)] == [6, 2, 2]
    from wavescat.runs.experiment import experiment
    from wavescat.training.checks import check

    with pytest.raises(ValueError, match="has targets .*use loss=mse"):
        check(experiment(dataset="csiro-biomass", model="resnet18", validation=2))


@pytest.mark.parametrize("wrong", ["nan", "", "much"])
def test_biomass_with_a_target_that_is_no_number(wrong):
    folder = _biomass(wrong or " ")
    with pytest.raises(ValueError, match="train.csv, line 26: GDM_g must be a number"):
        load("csiro-biomass")
    assert folder.is_dir() and [p for p in _left(cache_dir())] == []


# ------------------------------------------------------------------ one's own images
def test_own_folder_with_test_images(tmp_path):
    for part, n in (("train", 5), ("test", 2)):
        for c in ("cat", "dog"):
            for i in range(n):
                random_image(
                    tmp_path / "own" / part / c / f"{i}.png",
                    16,
                    ["RGB", "L", "RGBA", "P", "I;16"][i],
                )
    (tmp_path / "own" / "train" / "cat" / "notes.txt").write_text("no image")
    d = load(str(tmp_path / "own"))
    assert d.train.shape == (10, 3, 16, 16) and d.test_labels.tolist() == [0, 0, 1, 1]
    from wavescat.runs.experiment import experiment
    from wavescat.training.run import run

    os.environ["WAVESCAT_RUNS"] = str(tmp_path / "runs")
    e = experiment(
        dataset=str(tmp_path / "own"),
        model="scatresnet18",
        L=2,
        width=2,
        per_class=3,
        epochs=1,
        batch_size=4,
    )
    from wavescat.training.results import cached_result

    try:
        r = run(e)
        assert (
            r["split"].startswith("sha256:")
            and r["data"] == d.checksum
            and 0 <= r["test_accuracy"] <= 100
            and not cached_result(e)["stale"]
        )
        random_image(tmp_path / "own" / "train" / "cat" / "0.png", 16)
        load.cache_clear()
        assert cached_result(e)["stale"]  # other images: the result is no longer this experiment's
    finally:
        del os.environ["WAVESCAT_RUNS"]


def test_a_crop_larger_than_the_images():
    from wavescat.runs.experiment import experiment
    from wavescat.training.checks import check

    with pytest.raises(ValueError, match="images of 32×32 are too small for a crop of 128×128"):
        check(experiment(model="resnet18", augment="parametric-kth"))


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image(tmp_path / "a.jpg", (10, 20), exif=exif)
    assert decode((tmp_path / "a.jpg").read_bytes(), tmp_path / "a.jpg", None).shape == (3, 20, 10)


def test_own_csv(tmp_path):
    for i in range(6):
        random_image(tmp_path / f"{i}.png", 12)
    csv = tmp_path / "list.csv"
    csv.write_text(
        "path,label,split\n"
        + "".join(
            f"{i}.png,{'b' if i % 2 else 'a'},{'test' if i > 3 else 'train'}\n" for i in range(6)
        )
    )
    d = load(str(csv))
    assert (
        d.train.shape == (4, 3, 12, 12)
        and d.test_labels.tolist() == [0, 1]
        and d.classes == ("a", "b")
    )
    csv.write_text("path,height,weight\n" + "".join(f"{i}.png,{i},{2 * i}\n" for i in range(6)))
    load.cache_clear()
    d = load(str(csv))
    assert (
        d.targets == ("height", "weight")
        and d.train_labels[5].tolist() == [5, 10]
        and len(d.test) == 0
    )


@pytest.mark.parametrize(
    "text, says",
    [
        ("file,label\n0.png,a\n", "has no column path; it has file, label"),
        ("path\n0.png\n", "neither a column label nor columns of numbers"),
        ("path,label\n", "lists no images"),
        ("path,y\n0.png,nan\n", "line 2: y must be a number, got 'nan'"),
        ("path,label\n0.png,\n", "line 2: path or label is empty"),
        ("path,label\n9.png,a\n", "9.png is missing"),
        ("path,label,split\n0.png,a,val\n", "split must be train or test"),
        ("path,label\n0.png,b\nbad.png,a\n", "bad.png can't be decoded"),
        ("path,label\n0.png,a\n1.png,a\n", "has one label only"),
        ("path,label\n0.png,a\n./0.png,b\n", "line 3: ./0.png is already on line 2"),
        ("path,label\n0.png,a,b\n", "line 2: expected 2 values, got 3"),
        ("path,label\n0.png\n", "line 2: expected 2 values, got 1"),
        ("path;label\n0.png;a\n", "columns are separated by commas"),
        (
            "path,label\n0.png,a\n1.png,b\n",
            "is 20×20 pixels where the first is 12×12; choose one size",
        ),
    ],
)
def test_own_csv_with_something_wrong(tmp_path, text, says):
    random_image(tmp_path / "0.png", 12)
    random_image(tmp_path / "1.png", 20)
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as e:
        load(str(tmp_path / "list.csv"))
    assert "\n" not in str(e.value) and _left(cache_dir()) == []


def test_own_folder_with_something_wrong(tmp_path):
    (tmp_path / "own" / "cat").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="must hold a folder for each class, two at least; it holds cat"
    ):
        load(str(tmp_path / "own"))
    (tmp_path / "own" / "dog").mkdir()
    random_image(tmp_path / "own" / "cat" / "1.PNG", 8)
    with pytest.raises(ValueError, match="dog holds no images"):
        load(str(tmp_path / "own"))
    random_image(tmp_path / "own" / "dog" / "more" / "1.png", 8)
    random_image(tmp_path / "own" / "dog" / "2.png", 8)
    with pytest.raises(ValueError, match="more is a folder inside a class"):
        load(str(tmp_path / "own"))
    random_image(tmp_path / "tv" / "train" / "a" / "1.png", 8)
    random_image(tmp_path / "tv" / "val" / "a" / "1.png", 8)
    with pytest.raises(ValueError, match="training and test images must lie in train and test"):
        load(str(tmp_path / "tv"))
    with pytest.raises(FileNotFoundError, match="neither a folder nor a CSV"):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="is missing"):
        load(str(tmp_path / "nowhere.csv"))


def test_a_csv_in_another_encoding(tmp_path):
    (tmp_path / "list.csv").write_bytes("path,label\nné.png,a\n".encode("latin-1"))
    with pytest.raises(ValueError, match="list.csv can't be read .*save it as CSV in UTF-8"):
        load(str(tmp_path / "list.csv"))


def test_images_of_16_bits_share_one_scale(tmp_path):
    for name, top in (("dark", 249), ("light", 4094)):
        Image.fromarray(np.full((8, 8), top, np.uint16)).save(tmp_path / f"{name}.png")
    dark, light = (
        decode((tmp_path / f"{n}.png").read_bytes(), tmp_path / n, None).mean()
        for n in ("dark", "light")
    )
    assert (dark, light) == (1, 16)
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="have no known white"):
        decode((tmp_path / "f.tif").read_bytes(), tmp_path / "f.tif", None)


def test_a_colour_that_never_changes(tmp_path):
    for c in ("a", "b"):
        for i in range(3):
            random_image(tmp_path / "own" / c / f"{i}.png", 8)
            Image.fromarray(
                np.asarray(Image.open(tmp_path / "own" / c / f"{i}.png"))
                * np.array([1, 1, 0], np.uint8)
            ).save(tmp_path / "own" / c / f"{i}.png")
    assert load(str(tmp_path / "own")).std[2] == 0.01


def test_large_images_train_narrow_models(tmp_path):
    "torch's own 1×1 convolution with stride crashed here, in a process of its own."
    code = (
        "import torch; from wavescat.models.resnet import ResNet18; m = "
        "ResNet18(num_classes=2, width=4).to(memory_format=torch.channels_last)\n"
        "for _ in range(3): m(torch.randn(8, 3, 100, "
        "100).to(memory_format=torch.channels_last)).sum().backward()"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# ------------------------------------------------------------------ the cache
@pytest.mark.parametrize(
    "damage",
    ["train.npy gone", "train.npy cut", "labels.npz cut", "labels.npz gone", "set.json cut"],
)
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    for c in ("cat", "dog"):
        for i in range(3):
            random_image(tmp_path / "own" / c / f"{i}.png", 8)
    before = load(str(tmp_path / "own")).train.copy()
    load.cache_clear()
    file, how = damage.split()
    path = next(cache_dir().glob(f"own-*/{file}"))
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    assert (load(str(tmp_path / "own")).train == before).all()


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    random_image(tmp_path / "own" / "a" / "1.png", 8)
    random_image(tmp_path / "own" / "b" / "1.png", 8)
    monkeypatch.setenv("WAVESCAT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="can't be made .*WAVESCAT_CACHE"):
        load(str(tmp_path / "own"))
    monkeypatch.setenv("WAVESCAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda p: type("Usage", (), {"free": 10}))
    with pytest.raises(
        ValueError, match="needs .* GB in .*which hasn't as much left; set WAVESCAT_CACHE"
    ):
        load(str(tmp_path / "own"))
    assert _left(cache_dir()) == []


def test_two_processes_decode_at_once(tmp_path):
    "One decodes, the other waits and finds it done."
    for c in ("cat", "dog"):
        for i in range(200):
            random_image(tmp_path / "own" / c / f"{i}.png", 24)
    code = (
        "import wavescat.data.cache as c; from wavescat.data.load import load; b = "
        "c.build_decoded; c.build_decoded = lambda *a: (print('built'), b(*a))[1]; "
        f"print(load({str(tmp_path / 'own')!r}).checksum)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outs = [p.communicate(timeout=120) for p in both]
    assert all(p.returncode == 0 for p in both), outs
    assert (
        "".join(o for o, _ in outs).count("built") == 1
        and len({o.split()[-1] for o, _ in outs}) == 1
    )
    assert len([p for p in cache_dir().iterdir() if p.is_dir()]) == 1


def test_changed_files_are_read_again_and_equal_ones_are_not_kept_twice(tmp_path):
    for c in ("cat", "dog"):
        for i in range(3):
            random_image(tmp_path / "own" / c / f"{i}.png", 8)
    one = load(str(tmp_path / "own"))
    first = one.checksum
    path = tmp_path / "own" / "cat" / "0.png"
    os.utime(path, (1, 1))
    load.cache_clear()
    assert (
        load(str(tmp_path / "own")).checksum == first
        and len([p for p in cache_dir().iterdir() if p.is_dir()]) == 1
    )
    random_image(path, 8)
    load.cache_clear()
    assert load(str(tmp_path / "own")).checksum != first


def test_a_killed_build_leaves_nothing_that_counts(tmp_path):
    for c in ("cat", "dog"):
        for i in range(3):
            random_image(tmp_path / "own" / c / f"{i}.png", 8)
    code = (
        "import numpy, os, signal; from wavescat.data.load import load; numpy.savez = lambda "
        f"*a, **k: os.kill(os.getpid(), signal.SIGKILL); load({str(tmp_path / 'own')!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    d = load(str(tmp_path / "own"))
    assert len(d.train) == 6 and len([p for p in cache_dir().iterdir() if p.is_dir()]) == 1


def test_memory_does_not_grow_with_the_set(tmp_path):
    "300 MB of images are decoded and opened in far less."
    for c in ("cat", "dog"):
        for i in range(50):
            random_image(tmp_path / "own" / c / f"{i}.jpg", 1000)
    code = f"""
import resource
from wavescat.data.load import load
import numpy, PIL.Image, joblib
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
s = load({str(tmp_path / "own")!r})
print(s.train.nbytes / 1e6, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    size, grown = map(float, done.stdout.split())
    assert size == 300 and grown < 150, (size, grown)


# ------------------------------------------------------------------ the columns of a table
def _table(folder, text, images=6):
    for i in range(images):
        random_image(folder / f"{i}.png", 12)
    path = folder / "list.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _lines(header, row, n=6):
    return "\n".join([header, *(row(i) for i in range(n))]) + "\n"


@pytest.mark.parametrize(
    "index", ["", "Unnamed: 0", "id", "ID", "image_id", "imageId", "index", "level_0", "row"]
)
def test_an_index_is_no_target(tmp_path, index):
    path = _table(tmp_path, _lines(f"{index},path,height", lambda i: f"{i},{i}.png,{i * i}"))
    message = index or "column 1 (no name)"
    with pytest.raises(
        ValueError, match="looks like an index.*remove it, or give it the name"
    ) as e:
        load(str(path))
    assert f": {message} looks" in str(e.value) and "\n" not in str(e.value)
    path = _table(tmp_path, _lines(f"{index},path,label", lambda i: f"{i},{i}.png,{'ab'[i % 2]}"))
    assert load(str(path)).notes == (f"columns used: path, label; ignored: {message}",)


@pytest.mark.parametrize(
    "text, says",
    [
        (
            _lines("path,label,label", lambda i: f"{i}.png,{'ab'[i % 2]},{'ba'[i % 2]}"),
            "two columns called label: rename one",
        ),
        (_lines("path,y,y", lambda i: f"{i}.png,{i},{i}"), "two columns called y"),
        (
            _lines("path,label,Label", lambda i: f"{i}.png,{'ab'[i % 2]},x"),
            "label and Label both mean label",
        ),
        (
            _lines("image,label", lambda i: f"{i}.png,{'ab'[i % 2]}"),
            "has no column path; it has image, label; rename image to path",
        ),
        (
            _lines("path\tlabel", lambda i: f"{i}.png\t{'ab'[i % 2]}"),
            "columns are separated by commas",
        ),
        (
            _lines("path,class", lambda i: f"{i}.png,{i % 2}"),
            "column class may be the classes; call it label",
        ),
        (_lines("path,height", lambda i: f"{i}.png,3"), "height is 3 in every training row"),
        (
            _lines("path,height,species", lambda i: f"{i}.png,{i},oak"),
            "line 2: species must be a number, got 'oak', and no row has one; call the column label",
        ),
        (
            _lines("path,height,width", lambda i: f"{i}.png,{i},{'?' if i == 3 else i}"),
            "line 5: width must be a number, got .*; correct the line",
        ),
        (
            _lines("X,path,height", lambda i: f"{i + 1},{i}.png,{i * i}"),
            "X numbers the rows, which looks like an index",
        ),
        (
            _lines("path,label", lambda i: f"{i}.png,{i / 4}"),
            "label holds numbers such as 0.25; rename the column",
        ),
        (
            _lines("path,label", lambda i: f"{i}.png,{['1', '01'][i % 2]}"),
            "the classes 01 and 1 are the same number",
        ),
        (
            _lines("path,label", lambda i: f"{i}.png,{['a', 'nan'][i % 2]}"),
            "line 3: label is 'nan', a missing value",
        ),
        (
            _lines(
                "path,label,split",
                lambda i: f"{i}.png,{'aabbcc'[i]},{'test' if i > 3 else 'train'}",
            ),
            "c is in test rows only",
        ),
        (_lines("path,label,split", lambda i: f"{i}.png,{'ab'[i % 2]},test"), "has test rows only"),
        (
            _lines("path,label,split", lambda i: f"{i}.png,{'ab'[i % 2]},"),
            "line 2: split must be train or test, got ''",
        ),
        (
            _lines("path,label,split", lambda i: f"{i}.png,{'ab'[i % 2]},val"),
            "split must be train or test, got 'val'; validation images are split off",
        ),
        (
            _lines(
                "path,label,subset",
                lambda i: f"{i}.png,{'ab'[i % 2]},{'test' if i > 3 else 'train'}",
            ),
            "column subset says test and train; call it split",
        ),
        (
            _lines("path,label,split", lambda i: f"{i}.png,{'ab'[i % 2]},train")
            + "./0.png,a,test\n",
            "line 8: ./0.png is already on line 2",
        ),
        (
            _lines(
                "path,label,patient,split",
                lambda i: f"{i}.png,{'ab'[i % 2]},p{i % 4},{'test' if i > 3 else 'train'}",
            ),
            "patient p0, p1 has training and test rows",
        ),
        (
            _lines("path,label,patient", lambda i: f"{i}.png,{'ab'[i % 2]},"),
            "line 2: patient is empty",
        ),
        (
            _lines("path,label,patient,group", lambda i: f"{i}.png,{'ab'[i % 2]},1,1"),
            "a column group and a column patient",
        ),
        (
            _lines(
                "path,label",
                lambda i: f'"{i}.png,{"ab"[i % 2]}' if i == 2 else f"{i}.png,{'ab'[i % 2]}",
            ),
            "list.csv can't be read|goes on over several lines|expected 2 values",
        ),
        (_lines("path,label", lambda i: f"sub\\{i}.png,{'ab'[i % 2]}"), "separate folders with /"),
        (_lines("path,label", lambda i: f".,{'ab'[i % 2]}"), "line 2: . is a folder"),
    ],
)
def test_doubtful_columns_are_refused(tmp_path, text, says):
    path = _table(tmp_path, text)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as e:
        load(str(path))
    assert "\n" not in str(e.value) and _left(cache_dir()) == []


@pytest.mark.parametrize(
    "text",
    [
        _lines(" Path , LABEL ", lambda i: f" {i}.png , {'ab'[i % 2]} "),
        _lines("path,label", lambda i: f"{i}.png,{'ab'[i % 2]}").replace("\n", "\r\n"),
        _lines("path,label", lambda i: f"{i}.png,{'ab'[i % 2]}").replace("\n", "\r"),
        b"\xef\xbb\xbf" + _lines("path,label", lambda i: f"{i}.png,{'ab'[i % 2]}").encode(),
        _lines('"path","label"', lambda i: f'"{i}.png","{"ab"[i % 2]}"'),
        _lines("path,label,,", lambda i: f"{i}.png,{'ab'[i % 2]},,") + ",,,\n\n",
        _lines("path,label,Split", lambda i: f"{i}.png,{'ab'[i % 2]},Train"),
    ],
)
def test_tables_as_programs_write_them(tmp_path, text):
    d = load(str(_table(tmp_path, text)))
    assert d.classes == ("a", "b") and d.train_labels.tolist() == [0, 1] * 3 and len(d.notes) == 1


def test_what_the_columns_are_taken_for_is_said_once(tmp_path, capsys):
    path = _table(
        tmp_path,
        _lines(
            "path,height,weight,split",
            lambda i: f"{i}.png,{i},{i * i},{'test' if i > 3 else 'train'}",
        ),
    )
    message = "columns used: path, split; predicted as numbers: height, weight"
    for _ in range(2):
        assert load(str(path)).notes == (message,)
        load.cache_clear()
    assert capsys.readouterr().err.splitlines().count(f"list.csv: {message}") <= 1
    done = _command("data", "info", str(path))
    assert message in done.stdout.splitlines() and f"list.csv: {message}" in done.stderr


def test_small_and_missing_classes_are_said(tmp_path):
    path = _table(
        tmp_path,
        (
            "path,label,split\n"
            "0.png,a,train\n"
            "1.png,a,train\n"
            "2.png,b,train\n"
            "3.png,A,train\n"
            "4.png,A,train\n"
            "5.png,a,test\n"
        ),
    )
    assert load(str(path)).notes[1:] == (
        "one training image only of b",
        "no test image of A, b",
        "classes that differ in case only: A, a",
    )


# ------------------------------------------------------------------ the order of classes
@pytest.mark.parametrize(
    "names",
    [
        [str(i) for i in range(12)],
        [f"class{i}" for i in range(12)],
        ["-1", "0", "1.5", "2", "10"],
        ["01", "2", "03", "10"],
        ["a", "a2", "a10", "b"],
        ["1 cat", "2 dog", "10 cow"],
    ],
)
def test_numbers_in_class_names_are_in_order(tmp_path, names):
    for c in names:
        random_image(tmp_path / "own" / c / "0.png", 8)
    assert load(str(tmp_path / "own")).classes == tuple(names)
    first = load(str(tmp_path / "own"), classes="0-2")
    assert first.classes == tuple(names[:3]) and first.train_labels.tolist() == [0, 1, 2]


def test_integer_labels_of_a_table_are_in_order(tmp_path):
    path = _table(tmp_path, _lines("path,label", lambda i: f"{i}.png,{11 - i}", 12), 12)
    d = load(str(path), classes="0-4")
    assert d.classes == ("0", "1", "2", "3", "4") and d.train_labels.tolist() == [4, 3, 2, 1, 0]
    path.write_text(_lines("path,label", lambda i: f"{i}.png,{i % 3}.0", 12))
    load.cache_clear()
    assert load(str(path)).classes == ("0.0", "1.0", "2.0")


def test_a_run_keeps_the_order_it_was_trained_in(tmp_path, monkeypatch):
    "Trained on classes sorted as text: the run is stale, and what it says keeps its names."
    from wavescat.runs.experiment import experiment
    from wavescat.studies.inference import tested
    from wavescat.training.results import cached_result
    from wavescat.training.run import run

    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / "runs"))
    for c in ("1", "2", "10"):
        for i in range(4):
            random_image(tmp_path / "own" / c / f"{i}.png", 16)
    e = experiment(
        dataset=str(tmp_path / "own"),
        model="scatresnet18",
        L=2,
        width=2,
        per_class=2,
        epochs=1,
        batch_size=4,
    )
    with monkeypatch.context() as m:
        m.setattr(own_folder, "in_order", lambda names: tuple(sorted(names)))
        run(e)
        assert load(e.dataset).classes == ("1", "10", "2")
    load.cache_clear()
    shutil.rmtree(cache_dir())
    assert load(e.dataset).classes == ("1", "2", "10") and cached_result(e)["stale"]
    with pytest.raises(ValueError, match="was trained on the classes 1, 10, 2.*compute it again"):
        tested(e)


# ------------------------------------------------------------------ which files are images
def test_every_form_that_pillow_reads_is_taken(tmp_path):
    suffixes = [".jfif", ".jpe", ".JPG", ".jp2", ".tga", ".pnm", ".TIF", ".ico", ".pcx"] + [
        ".avif"
    ] * features.check("avif")
    for c in "ab":
        for s in suffixes:
            (tmp_path / "own" / c).mkdir(parents=True, exist_ok=True)
            Image.fromarray(RNG.randint(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                tmp_path / "own" / c / f"x{s}"
            )
    d = load(str(tmp_path / "own"), size=16)
    assert len(d.train) == 2 * len(suffixes) and d.notes == ()


def test_what_was_passed_over_is_counted_and_named(tmp_path):
    own = tmp_path / "own"
    for part in ("Train", "Testing"):
        for c in "ab":
            for i in range(2):
                random_image(own / part / c / f"{i}.png", 8)
    for junk in (
        "__MACOSX/x/._0.png",
        ".DS_Store",
        "Train/a/._0.png",
        "Train/a/Thumbs.db",
        "Train/a/new.heic",
        "Train/a/nosuffix",
        "Train/.ipynb_checkpoints/0.png",
        "Testing/b/.ipynb_checkpoints/1.png",
        "Train/loose.png",
        "val/a/0.png",
    ):
        (own / junk).parent.mkdir(parents=True, exist_ok=True)
        (own / junk).write_bytes(b"x")
    d = load(str(own))
    assert d.train.shape[0] == d.test.shape[0] == 4 and d.classes == ("a", "b")
    assert d.notes[0] == "training images are those of Train, test images those of Testing"
    assert d.notes[1] == (
        "skipped 10 files, no images that Pillow reads or not in a class folder: .DS_Store, "
        "__MACOSX (1 inside), val (1 inside) and 7 more"
    )


def test_passed_over_names_what_lies_in_a_class(tmp_path):
    for c in "ab":
        for i in "05":
            random_image(tmp_path / "own" / c / f"{i}.png", 8)
    (tmp_path / "own" / "b" / "1.heic").write_bytes(b"x")
    assert load(str(tmp_path / "own")).notes == (
        "skipped 1 file, no images that Pillow reads or not in a class folder: b/1.heic",
    )
    random_image(tmp_path / "own" / "b" / "2.png", 8)
    (tmp_path / "own" / "b" / "1.heic").unlink()
    load.cache_clear()
    assert load(str(tmp_path / "own")).notes == ()
    (tmp_path / "own" / "a" / "5.png").unlink()
    load.cache_clear()
    assert load(str(tmp_path / "own")).notes == ("one image only in own: a",)
    (tmp_path / "own" / "a" / "0.png").rename(tmp_path / "own" / "a" / "0.heic")
    load.cache_clear()
    with pytest.raises(ValueError, match="a holds no images that Pillow reads, but 0.heic"):
        load(str(tmp_path / "own"))


def test_folders_that_cannot_be_told(tmp_path):
    own = tmp_path / "own"
    for c in "ab":
        random_image(own / "train" / c / "0.png", 8)
    for i in range(3):
        random_image(own / "test" / f"{i}.png", 8)
    with pytest.raises(ValueError, match="test holds 3 images and no class folders"):
        load(str(own))
    shutil.rmtree(own / "test")
    (own / "test" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="test holds no images"):
        load(str(own))
    random_image(own / "test" / "a" / "0.png", 8)
    assert "no image in test: b" in load(str(own)).notes
    (own / "Training").mkdir()
    load.cache_clear()
    with pytest.raises(ValueError, match="holds Training and train, which both mean train"):
        load(str(own))


def test_links(tmp_path):
    own = tmp_path / "own"
    for c in "ab":
        random_image(own / c / "0.png", 8)
    random_image(tmp_path / "elsewhere" / "0.png", 8)
    (own / "c").symlink_to(tmp_path / "elsewhere")
    (own / "a" / "1.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    d = load(str(own))
    assert d.train_labels.tolist() == [0, 0, 1, 2]
    (own / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    load.cache_clear()
    with pytest.raises(FileNotFoundError, match="gone.png is missing, or a link to nowhere"):
        load(str(own))
    (own / "b" / "gone.png").unlink()
    (own / "b" / "loop.png").symlink_to(own / "b" / "loop.png")
    with pytest.raises(FileNotFoundError, match="loop.png is missing, or a link to nowhere"):
        load(str(own))
    (own / "b" / "loop.png").unlink()
    (own / "b" / "up").symlink_to(own)
    with pytest.raises(ValueError, match="up is a folder inside a class"):
        load(str(own))


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_file_that_is_no_image(tmp_path, content):
    for c in "ab":
        random_image(tmp_path / "own" / c / "0.png", 8)
    (tmp_path / "own" / "b" / "1.jpg").write_bytes(content)
    with pytest.raises(
        ValueError, match="1.jpg can't be decoded .*; replace it, or take it out of the set"
    ):
        load(str(tmp_path / "own"))


# ------------------------------------------------------------------ images that belong together
def _covidx(patients, files_=None):
    folder, n = source_folder("covidx-cxr"), len(patients)
    files_ = files_ or [f"{i}.png" for i in range(n)]
    for part in ("train", "test"):
        for f in files_:
            random_image(folder / part / f, 12)
        who = patients if part == "train" else [f"t{p}" for p in patients]
        (folder / f"{part}.txt").write_text(
            "".join(
                f"{p} {f} {'positive' if i % 2 else 'negative'} cohen\n"
                for i, (p, f) in enumerate(zip(who, files_))
            )
        )
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"validation": 14},
        {"per_class": 5, "validation": 14},
        {"per_class": 5, "validation": 13, "seed": 3},
    ],
)
def test_no_covidx_patient_trains_and_validates(options):
    _covidx([f"COVID {i // 3}" for i in range(42)])
    d = load("covidx-cxr")
    assert d.info["patient"].tolist()[:4] == ["COVID 0"] * 3 + ["COVID 1"]
    s = split(d, **options)
    assert s.test is None and not set(d.info["patient"][s.train]) & set(
        d.info["patient"][s.validation]
    )
    assert (
        0 < len(s.validation) <= options["validation"]
        and (split(d, **options).train == s.train).all()
    )
    if "per_class" in options:
        assert np.bincount(d.train_labels[s.train]).tolist() == [5, 5]


def test_covidx_files_with_blanks_and_beside_the_lists(monkeypatch):
    folder = _covidx(
        ["5", "COVID 1", "7", "8"], ["my chest  scan.png", "COVID(1).png", "a.png", "b.png"]
    )
    random_image(folder / "train" / "more.png", 12)
    d = load("covidx-cxr")
    assert d.info["patient"].tolist() == ["5", "COVID 1", "7", "8"] and d.train_labels.tolist() == [
        0,
        1,
        0,
        1,
    ]
    assert (
        "1 images in train are on no list: more.png" in d.notes
        and "not whole: 4 of 15,952 training images are here" in d.notes
    )
    monkeypatch.setitem(READERS, "covidx-cxr", READERS["covidx-cxr"]._replace(expected=(3, 4)))
    shutil.rmtree(cache_dir())
    load.cache_clear()
    assert (
        "not the published split: 4 training images, 3 were published" in load("covidx-cxr").notes
    )
    whole, lines = verify_set("covidx-cxr")
    assert (
        not whole
        and "4 of 3 training images; more than were published" in lines
        and "4 of 4 test images" in lines
    )
    (folder / "train.txt").write_text("5 a.png negative cohen\n5 a.png negative cohen\n")
    load.cache_clear()
    with pytest.raises(ValueError, match="line 2: a.png is already on line 1"):
        load("covidx-cxr")


@pytest.mark.parametrize(
    "column, header, last",
    [
        ("patient", "label", lambda i: "ab"[i % 2]),
        ("group", "label", lambda i: "ab"[i % 2]),
        ("group", "height", str),
    ],
)
def test_groups_of_a_table_stay_together(tmp_path, column, header, last):
    path = _table(
        tmp_path,
        _lines(f"path,{column},{header}", lambda i: f"{i}.png,g{i // 4},{last(i)}", 40),
        40,
    )
    d = load(str(path))
    s = split(d, validation=8)
    parts = [set(d.info[column][part]) for part in s]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2]) and [
        len(p) for p in s
    ] == [24, 8, 8]
    torn = s._replace(train=s.train[1:], validation=np.append(s.validation, s.train[0]))
    save_split(torn, d, tmp_path / "torn.json")
    with pytest.raises(ValueError, match=f"puts images of one {column} into two parts"):
        split(d, str(tmp_path / "torn.json"), validation=9)


def test_too_few_groups(tmp_path):
    path = _table(
        tmp_path, _lines("path,patient,label", lambda i: f"{i}.png,{'pq'[i % 2]},{'ab'[i % 2]}")
    )
    with pytest.raises(
        ValueError,
        match="class a has 0 images left to train on, as every patient is in one part only",
    ):
        split(load(str(path)))


# ------------------------------------------------------------------ the command
def _command(*args):
    return subprocess.run(
        [sys.executable, "-c", "from wavescat.apps.cli import main; main()", *args],
        capture_output=True,
        text=True,
    )


def test_the_command(cifar, tmp_path):
    done = _command("data", "list")
    assert done.returncode == 0 and all(name in done.stdout for name in DATASETS)
    done = _command("data", "fetch", "cifar")
    assert (
        done.returncode == 2
        and done.stderr == "wavescat: unknown data set 'cifar'; did you mean cifar10 or cifair10?\n"
    )
    with Server(cifar) as server:
        done = _command(
            "data", "fetch", "cifar10", "--mirror", server.url + "/x.tar.gz"
        )  # the real table: this isn't the official archive
    assert (
        done.returncode == 2
        and "isn't the official file" in done.stderr.splitlines()[-1]
        and _left(data_dir()) == []
    )
    done = _command("data", "verify", "mnist")
    assert (
        done.returncode == 1
        and "is missing; fetch it with: wavescat data fetch mnist" in done.stdout
        and done.stdout.splitlines()[-1] == "mnist: not whole"
    )
    done = _command("data", "verify", "textures")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "textures: whole"
    done = _command("data", "info", "textures")
    assert (
        done.returncode == 0
        and "800 of 32×32, 1 colour" in done.stdout
        and "0 of 800 test images are training images too" in done.stdout
    )
    for c in ("a", "b"):
        for i in range(10):
            Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(
                (
                    tmp_path / "same" / c / f"{i}.png",
                    (tmp_path / "same" / c).mkdir(parents=True, exist_ok=True),
                )[0]
            )
    assert (
        "4 of 4 test images are training images too"
        in _command("data", "info", str(tmp_path / "same")).stdout
    )
    assert _command("data", "info", str(tmp_path / "none.csv")).returncode == 2
    done = _command("data", "fetch", "mnist", "--mirror", "/tmp/x")
    assert done.returncode == 2 and "begins with http:// or https://" in done.stderr
    source_folder("tiny-imagenet").mkdir(parents=True)
    done = _command("data", "fetch", "tiny-imagenet")
    assert (
        done.returncode == 2
        and "is there, but isn't whole" in done.stderr
        and "move it away" in done.stderr
    )


def test_the_readme_has_the_table():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert sources_table() in readme, "run make readme"


def test_every_checksum_says_where_it_was_read():
    for s in SOURCES.values():
        for known in (*s.files.values(), *s.inside.values()):
            assert bool(known.checksum) <= bool(known.origin)
            assert not known.checksum or (
                known.checksum.startswith("md5:") and len(known.checksum) == 36
            )


# ------------------------------------------------------------------ real files, where a machine has them
def test_official_cifar10_if_it_is_here(folders, monkeypatch):
    if not folders or not (Path(folders) / "cifar-10-batches-py").is_dir():
        pytest.skip("CIFAR-10 isn't on this machine: set WAVESCAT_DATA")
    monkeypatch.setenv("WAVESCAT_DATA", folders)
    assert verify_set("cifar10")[0]
    d = load("cifar10")
    assert (
        d.train.shape == (50_000, 3, 32, 32)
        and (np.bincount(d.test_labels) == 1000).all()
        and d.classes[0] == "airplane"
    )
    assert np.allclose(d.train.mean((0, 2, 3)) / 255, d.mean, **within("gradients"))
    s = split(d, per_class=100, validation=5000)
    assert (
        len(s.train) == 1000
        and (np.bincount(d.train_labels[s.validation]) == 500).all()
        and not set(s.train) & set(s.validation)
    )
    p = split(d, "permuted", 10, seed=207715039)
    assert (
        all(d.train_labels[p.train] == np.repeat(np.arange(10), 10))
        and (np.flatnonzero(d.train_labels == 0)[[3363, 408]] == p.train[:2]).all()
    )
