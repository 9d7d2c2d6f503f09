"""The recordings of the demo, and the text format that they are stored in.

BasicMotions: 40 + 40 recordings of four activities by a smart watch (accelerometer and gyroscope
with 3 axes each), of 100 samples each at 10 Hz. From the UEA multivariate time-series archive
(Bagnall et al., 2018, https://arxiv.org/abs/1811.00075), as shipped in the BSD-licensed package
aeon.
"""

import gzip
from collections.abc import Iterable
from importlib import resources
from typing import NamedTuple

import numpy as np

SAMPLES_PER_SECOND = 10


class Recordings(NamedTuple):
    """Recordings of equal length.

    Attributes:
      x: float32 ``(N, channels, samples)``.
      y: int ``(N,)``, indices into ``labels``.
      labels: the activities' names.
    """

    x: np.ndarray
    y: np.ndarray
    labels: tuple[str, ...]


def load(split: str) -> Recordings:
    """Loads the embedded recordings for "train" or "test", 40 each."""
    name = f"BasicMotions_{split.upper()}.ts.gz"
    packed = resources.files("cojax.demo").joinpath(name).read_bytes()
    return parse(gzip.decompress(packed).decode().splitlines())


def parse(lines: Iterable[str]) -> Recordings:
    """Parses the ``.ts`` format: ``#`` comments, ``@`` headers, then one recording per line.

    A recording is its channels, each of comma-separated samples, and its label, all joined by
    ``:``.

    Raises:
      ValueError: for a line without a known label, or recordings that differ in shape.
    """
    labels: tuple[str, ...] = ()
    clips, classes = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("@"):
            header, *words = line.split()
            if header.lower() == "@classlabel":
                labels = tuple(words[1:])
            continue
        *channels, label = line.strip().split(":")
        if label not in labels:
            raise ValueError(f"line {number}: label {label!r} is none of {labels}")
        clips.append([[float(sample) for sample in channel.split(",")] for channel in channels])
        classes.append(labels.index(label))
    return Recordings(np.array(clips, np.float32), np.array(classes), labels)
