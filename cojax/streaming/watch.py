"""``cojax video``: recognises what happens in a video, while it happens."""

import json
import os
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from cojax.pictures import pyplot
from cojax.streaming.lines import json_line
from cojax.streaming.stream import Stream
from cojax.streaming.video import BrokenVideoError, Video, at_rate, image_of

# The frames per second of the videos that the networks of the zoo were trained on.
_TRAINED_FPS = 30
_BAR = 30


class Training(NamedTuple):
    """The clips that a network of the zoo was trained on.

    Attributes:
      image_size: the side length of the images, in pixels.
      steps: the length of a clip.
      apart: the number of video frames from one step to the next, at 30 frames per second.
    """

    image_size: int
    steps: int
    apart: int

    @property
    def fps(self) -> Fraction:
        """The number of steps per second."""
        return Fraction(_TRAINED_FPS, self.apart)


TRAINED = {
    "cox3d_s": Training(160, 13, 6),
    "cox3d_m": Training(224, 16, 5),
    "cox3d_l": Training(312, 16, 5),
    "coslow": Training(256, 8, 8),
    "coi3d": Training(224, 8, 8),
}


class Prediction(NamedTuple):
    """A prediction of the network, and its time.

    Attributes:
      seconds: the time of the frame that led to it, since the first frame.
      probabilities: one for each class.
    """

    seconds: float
    probabilities: np.ndarray

    def best(self, top: int) -> list[int]:
        """The most probable classes, in order of decreasing probability."""
        return np.argsort(-self.probabilities, kind="stable")[:top].tolist()


class Outcome(NamedTuple):
    """How watching ended.

    Attributes:
      complaint: why the video broke off before its end, or None if it did not.
      interrupted: whether the user interrupted it.
    """

    complaint: str | None
    interrupted: bool


def class_names(path: str | os.PathLike[str]) -> list[str]:
    """Reads the names of the classes: one per line, or as JSON a list, or numbers by name.

    Raises:
      ValueError: if there are none, or the numbers do not count the classes from 0.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = None
    if isinstance(content, dict):
        by_number = {number: name for name, number in content.items()}
        if sorted(by_number, key=str) != sorted(range(len(content)), key=str):
            raise ValueError(f"{path} must give each name a number, from 0 on and without gaps")
        names = [by_number[number] for number in range(len(content))]
    elif isinstance(content, list):
        names = [str(name) for name in content]
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} names no classes")
    return [name.strip('"') for name in names]  # The names of Kinetics are quoted.


def watch(
    video: Video,
    stream: Stream,
    fps: Fraction,
    tell: Callable[[Prediction], None],
    notes: TextIO,
) -> Outcome:
    """Runs a network on a video, and reports each prediction as soon as it is made.

    Args:
      video: the video.
      stream: a fresh stream from images ``(1, 3, size, size)`` to probabilities ``(1, classes)``.
      fps: the number of steps per second.
      tell: called with each prediction.
      notes: where the speed is reported at the end; on a terminal, also the progress in a file.
    """
    size = stream.spec.shape[-1]
    _compile(stream)
    progress = Progress(video.seconds, notes)
    shown, predictions = Fraction(0), 0
    complaint, interrupted = None, False
    start = time.perf_counter()
    try:
        for seconds, frame in at_rate(video.frames(), fps, video.live):
            y = stream(image_of(frame, size))
            if y is not None:
                progress.clear()
                tell(Prediction(float(seconds), np.asarray(y[0])))
                predictions += 1
            shown = seconds
            progress.show(seconds, stream.steps_taken / (time.perf_counter() - start))
    except BrokenVideoError as error:
        complaint = str(error)
    except KeyboardInterrupt:
        interrupted = True
    progress.clear()
    _conclude(stream, fps, shown, time.perf_counter() - start, predictions, notes)
    return Outcome(complaint, interrupted)


def line_of(prediction: Prediction, names: Sequence[str], top: int, as_json: bool) -> str:
    """Formats the most probable classes as text, or as a JSON object ``{"seconds", "top"}``."""
    best = [(number, float(prediction.probabilities[number])) for number in prediction.best(top)]
    if as_json:
        classes = [{"class": n, "name": names[n], "probability": p} for n, p in best]
        return json_line({"seconds": round(prediction.seconds, 3), "top": classes})
    return f"{prediction.seconds:8.2f} s  " + "  ".join(f"{p:.3f} {names[n]}" for n, p in best)


class Progress:
    """A progress bar on a terminal, for a video of known length."""

    def __init__(self, length: Fraction | None, out: TextIO) -> None:
        self.length = length
        self.out = out
        self.shown = bool(length) and out.isatty()

    def show(self, seconds: Fraction, rate: float) -> None:
        """Redraws the bar."""
        if self.shown and self.length:
            done = min(_BAR, int(_BAR * seconds / self.length))
            bar = "━" * done + "─" * (_BAR - done)
            place = f"{float(seconds):.1f}/{float(self.length):.1f} s"
            self.out.write(f"\r{bar} {place}, {rate:.1f} frames a second\x1b[K")
            self.out.flush()

    def clear(self) -> None:
        """Removes the bar, to print other lines or for good."""
        if self.shown:
            self.out.write("\r\x1b[K")
            self.out.flush()


def draw(
    predictions: Sequence[Prediction],
    names: Sequence[str],
    top: int,
    title: str,
    path: str | os.PathLike[str],
) -> None:
    """Plots the probabilities over time of the classes with the highest peak probabilities.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    plt = pyplot()
    seconds = [prediction.seconds for prediction in predictions]
    curves = np.stack([prediction.probabilities for prediction in predictions], axis=1)
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for number in Prediction(0.0, curves.max(axis=1)).best(top):
        axes.plot(seconds, curves[number], lw=1.4, marker=".", ms=4, label=names[number])
    if seconds[0] > 0:
        axes.axvspan(0, seconds[0], color="0.92", lw=0)
        where = axes.get_xaxis_transform()
        axes.text(
            seconds[0] / 2,
            0.5,
            "warming up",
            ha="center",
            va="center",
            rotation=90,
            transform=where,
        )
    axes.set(xlabel="seconds", ylabel="probability", xlim=(0, None), ylim=(0, 1), title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _compile(stream: Stream) -> None:
    stream(np.zeros(stream.spec.shape, stream.spec.dtype))
    stream.reset()


def _conclude(
    stream: Stream,
    fps: Fraction,
    shown: Fraction,
    elapsed: float,
    predictions: int,
    notes: TextIO,
) -> None:
    if frames := stream.steps_taken:
        print(
            f"{frames} frames in {elapsed:.1f} s: {frames / elapsed:.1f} a second, "
            f"{frames / elapsed / float(fps):.2f} times as fast as they come; "
            f"{predictions} predictions",
            file=notes,
        )
    if not predictions:
        delay = stream.net.delay
        print(
            f"no prediction: the first comes with frame {delay + 1}, at {delay / float(fps):.1f} s,"
            f" and there are {float(shown):.1f} s; a smaller --pool-size answers sooner",
            file=notes,
        )
