"""A tiny data set in IDX files, as arrays, as the files' bytes and packed by gzip."""

import gzip
import hashlib

import numpy as np

from descent.data.mnist import IdxFile, IdxSource

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
SHAPES = {IMAGES: (9, 7, 5), LABELS: (9,)}


def encode(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


ARRAYS = {
    name: np.random.default_rng(3).integers(0, 256 if len(shape) > 1 else 10, shape, dtype=np.uint8)
    for name, shape in SHAPES.items()
}
CONTENT = {name: encode(array) for name, array in ARRAYS.items()}
FILES = {name: IdxFile(hashlib.sha256(content).hexdigest(), SHAPES[name]) for name, content in CONTENT.items()}
PACKED = {name: gzip.compress(content, 6, mtime=0) for name, content in CONTENT.items()}
LOCAL = IdxSource("tiny", FILES, mirrors=())
