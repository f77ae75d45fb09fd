"""Data that is missing, damaged, cut off or not what it says: one clear error, and nothing left behind."""
import hashlib
import io
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import wavescat.data as data


@pytest.fixture
def small(tmp_path, monkeypatch):
    "A CIFAR-10 of a hundredth of the size, in the official layout, as an archive on a server on this machine."
    rng = np.random.RandomState(0)
    def batch(n): return pickle.dumps({b"data": rng.randint(0, 256, (n, 3072), dtype=np.uint8), b"labels": list(rng.randint(0, 10, n))})
    contents = {f"data_batch_{i}": batch(100) for i in range(1, 6)} | {"test_batch": batch(100), "batches.meta": pickle.dumps({b"label_names": [f"c{i}".encode() for i in range(10)]})}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}"); info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    served = tmp_path / "served"; served.mkdir()
    (served / "cifar-10-python.tar.gz").write_bytes(archive.getvalue())
    md5 = {n: hashlib.md5(c).hexdigest() for n, c in {**contents, "cifar-10-python.tar.gz": archive.getvalue()}.items()}
    monkeypatch.setattr(data, "_CIFAR10_MD5", md5)
    monkeypatch.setenv("WAVESCAT_DATA", str(tmp_path / "data"))
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WAVESCAT_CIFAR10_URL", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
    yield tmp_path / "data", served / "cifar-10-python.tar.gz"
    server.shutdown()


def _left(folder): return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def test_fetched_verified_and_read(small):
    folder, _ = small
    d = data.cifar10()
    assert d.train.shape == (500, 3, 32, 32) and d.test.shape == (100, 3, 32, 32) and d.classes[3] == "c3"
    assert _left(folder) == ["cifar-10-batches-py"] and len(_left(folder / "cifar-10-batches-py")) == 7


def test_what_the_server_sends_is_damaged(small):
    folder, archive = small
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="isn't the official archive.*WAVESCAT_CIFAR10_URL"): data.cifar10()
    assert _left(folder) == []


def test_no_server(small, monkeypatch):
    folder, _ = small
    monkeypatch.setenv("WAVESCAT_CIFAR10_URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(FileNotFoundError, match="is missing and .* can't be fetched.*WAVESCAT_DATA"): data.cifar10()
    assert _left(folder) == []


def test_nothing_is_unpickled_before_it_is_verified(small):
    folder, _ = small
    data.cifar10()
    class Bomb:
        def __reduce__(self): return (print, ("boom",))
    path = folder / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="data_batch_3 is damaged: expected md5 .*, found .*; delete"): data.cifar10()


def test_a_file_is_missing(small):
    folder, _ = small
    data.cifar10()
    (folder / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="test_batch is missing; delete"): data.cifar10()


def test_a_photograph_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setitem(data._PHOTOGRAPHS, "brick", ("brick.png", "0" * 64, "CC0"))
    with pytest.raises(ValueError, match="brick.png is damaged: expected sha256 000.*pip install"): data.textures()


def test_official_files_if_they_are_here():
    "The real CIFAR-10, where a machine has it."
    if not (data.data_dir() / "cifar-10-batches-py").is_dir(): pytest.skip("CIFAR-10 isn't on this machine: set WAVESCAT_DATA")
    d = data.cifar10()
    assert d.train.shape == (50_000, 3, 32, 32) and (np.bincount(d.test_labels) == 1000).all() and d.classes[0] == "airplane"
    assert np.allclose(d.train.mean((0, 2, 3)) / 255, d.mean, atol=1e-3)
    train, val = data.split(d.train_labels, 100, 5000)
    assert len(train) == 1000 and len(val) == 5000 and (np.bincount(d.train_labels[val]) == 500).all() and not set(train) & set(val)
