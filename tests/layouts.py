"""Small sets of random images in the layouts of their publishers."""

import gzip
import hashlib

import numpy as np
from PIL import Image

from wavescat.data.folders import source_folder
from wavescat.data.sources import SOURCES, FileInfo

RNG = np.random.RandomState(1)


def random_image(path, side=16, mode="RGB", **how):
    "Write an image of random pixels, in a mode of Pillow; returns its four random planes."
    path.parent.mkdir(parents=True, exist_ok=True)
    h, w = side if isinstance(side, tuple) else (side, side)
    a = RNG.randint(0, 256, (h, w, 4), dtype=np.uint8)
    im = {
        "RGB": lambda: Image.fromarray(a[..., :3]),
        "L": lambda: Image.fromarray(a[..., 0]),
        "RGBA": lambda: Image.fromarray(a),
        "I;16": lambda: Image.fromarray(a[..., 0].astype(np.uint16) * 257),
        "P": lambda: Image.fromarray(a[..., :3]).quantize(16),
    }[mode]()
    im.save(path, **how)
    return a


def mnist_files(monkeypatch):
    "Its folder, its four arrays by file name, and the files' contents, whose checksums become valid."
    folder = source_folder("mnist")
    folder.mkdir(parents=True)
    idx = lambda a: bytes([0, 0, 8, a.ndim]) + np.array(a.shape, ">i4").tobytes() + a.tobytes()
    arrays = {
        "train-images-idx3-ubyte.gz": RNG.randint(0, 256, (30, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte.gz": (np.arange(30) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte.gz": RNG.randint(0, 256, (20, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte.gz": (np.arange(20) % 10).astype(np.uint8),
    }
    contents = {n: idx(a) for n, a in arrays.items()}
    monkeypatch.setitem(
        SOURCES,
        "mnist",
        SOURCES["mnist"]._replace(
            inside={n: FileInfo("md5:" + hashlib.md5(c).hexdigest()) for n, c in contents.items()}
        ),
    )
    return folder, arrays, {n: gzip.compress(c) for n, c in contents.items()}


def tiny_imagenet(folder, each=12):
    "Three classes, two of them called crane, with `each` training images and 6 validation images."
    ids = ["n01", "n02", "n03"]
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(ids))
    (folder / "words.txt").write_text("n01\tcrane, bird\nn02\tcrane\nn03\tcat, pussy\nn99\tother\n")
    for i in ids:
        for n in range(each):
            random_image(
                folder / "train" / i / "images" / f"{i}_{n}.JPEG", 64, "L" if n == 3 else "RGB"
            )
    for n in range(6):
        random_image(folder / "val" / "images" / f"val_{n}.JPEG", 64)
    (folder / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{n}.JPEG\t{ids[n % 3]}\t0\t0\t62\t62\n" for n in range(6))
    )
