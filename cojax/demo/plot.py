"""Plots one recording, with the network's outputs as it came in."""

import os

import numpy as np

from cojax.demo.recordings import SAMPLES_PER_SECOND, Recordings
from cojax.pictures import pyplot

_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")


def draw(data: Recordings, number: int, outputs: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Plots a recording and the outputs of a stream over it.

    Args:
      data: the recordings.
      number: the index of the recording, from 0.
      outputs: the probabilities ``(classes, outputs)``; the last one belongs to the last sample.
      path: the image file, in any format that matplotlib writes.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    plt = pyplot()
    clip = data.x[number]
    seconds = np.arange(1, clip.shape[1] + 1) / SAMPLES_PER_SECOND
    answered = seconds[-outputs.shape[1] :]
    figure, (motion, turning, opinion) = plt.subplots(
        3, 1, figsize=(9, 6.5), sharex=True, height_ratios=(1, 1, 1.2), layout="constrained"
    )
    axes = {"motion": (motion, clip[:3]), "turning": (turning, clip[3:])}
    for name, (axis, channels) in axes.items():
        for letter, channel in zip("xyz", channels, strict=True):
            axis.plot(seconds, channel, lw=1.2, label=letter)
        axis.set_ylabel("accelerometer" if name == "motion" else "gyroscope")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    opinion.stackplot(answered, outputs, labels=data.labels, colors=_COLORS, alpha=0.85)
    opinion.axvspan(0, answered[0], color="0.92", lw=0)
    opinion.text(answered[0] / 2, 0.5, "filling the receptive field", ha="center", va="center")
    opinion.set(ylim=(0, 1), ylabel="opinion", xlabel="seconds", xlim=(0, seconds[-1]))
    opinion.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for axis in (motion, turning, opinion):
        axis.spines[["top", "right"]].set_visible(False)
    label = data.labels[int(data.y[number])]
    figure.suptitle(f"Recording {number + 1}: {label}, and what the stream makes of it")
    figure.savefig(path, dpi=120)
    plt.close(figure)
