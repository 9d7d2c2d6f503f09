"""``cojax demo``: streams the test recordings, and compares the stream with the clips."""

import statistics
import sys
import time
from collections import deque
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

import cojax as co
from cojax.demo.network import LABELS, activity_network, trained_variables
from cojax.demo.recordings import SAMPLES_PER_SECOND, Recordings, load

SAMPLES_PER_MARK = 5


class Outcome(NamedTuple):
    """The results of streaming the recordings.

    Attributes:
      online, offline: the fraction of recordings whose last output is right, streamed and by clip.
      difference: the largest difference between a stream's outputs and the clip's.
      step_us, window_us: the median microseconds for a step, and for recomputing the window.
      outputs: the probabilities ``(classes, outputs)`` for each recording.
    """

    online: float
    offline: float
    difference: float
    step_us: float
    window_us: float
    outputs: list[np.ndarray]


def run(out: TextIO | None = None) -> Outcome:
    """Streams the 40 test recordings, one sample at a time, and prints the network's outputs."""
    out = sys.stdout if out is None else out
    net, data = activity_network(), load("test")
    assert data.labels == LABELS
    variables = trained_variables(net)
    _introduce(net, variables, data, out)

    stream = co.Stream(net, variables, (1, data.x.shape[1]))
    forward = jax.jit(lambda clip: net.apply(variables, clip))
    window: deque[np.ndarray] = deque(maxlen=net.receptive_field)
    _compile(stream, forward, data.x[:1], net.receptive_field)
    online, offline, difference = 0, 0, 0.0
    step_us: list[float] = []
    window_us: list[float] = []
    all_outputs = []
    for number, (clip, label) in enumerate(zip(data.x, data.y, strict=True), 1):
        out.write(f"{number:4}/{len(data.x)}  {data.labels[label]:10}")
        stream.reset()
        window.clear()
        outputs = []
        for t, sample in enumerate(clip.T, 1):
            x_t = sample[None]
            opinion = _timed(step_us, lambda x_t=x_t: stream(x_t))
            window.append(x_t)
            if opinion is not None:
                recent = np.stack(window, axis=2)
                _timed(window_us, lambda recent=recent: forward(recent))
                outputs.append(np.asarray(opinion[0]))
            if t % SAMPLES_PER_MARK == 0:
                out.write(data.labels[int(outputs[-1].argmax())][0] if outputs else "·")
                out.flush()
        streamed = np.stack(outputs, axis=1)
        whole = np.asarray(forward(clip[None])[0])
        difference = max(difference, float(np.abs(streamed - whole).max()))
        guess = int(streamed[:, -1].argmax())
        online += guess == label
        offline += int(whole[:, -1].argmax()) == label
        right = "✓" if guess == label else "✗"
        out.write(f"  {data.labels[guess]:10}{streamed[guess, -1]:.2f} {right}\n")
        all_outputs.append(streamed)
    outcome = Outcome(
        online / len(data.x),
        offline / len(data.x),
        difference,
        statistics.median(step_us),
        statistics.median(window_us),
        all_outputs,
    )
    _conclude(outcome, net, out)
    return outcome


def _introduce(net: co.CoModule, variables: Any, data: Recordings, out: TextIO) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    seconds = net.receptive_field / SAMPLES_PER_SECOND
    marks = ", ".join(f"{label[0]} {label}" for label in data.labels)
    out.write(
        f"cojax {co.__version__} on {jax.default_backend()}: a temporal convolution network of "
        f"{parameters:,} parameters\nlistens to {len(data.x)} recordings of a smart watch, "
        f"{SAMPLES_PER_SECOND} samples a second, one sample at a time.\n"
        f"It answers every sample by the last {seconds} s. Its opinion each half second:\n"
        f"{marks}, · too early.\n\n"
    )


def _conclude(outcome: Outcome, net: co.CoModule, out: TextIO) -> None:
    ratio = outcome.window_us / outcome.step_us
    rows = [
        ("accuracy online (stream, last opinion)", f"{outcome.online:.1%}"),
        ("accuracy offline (whole clip)", f"{outcome.offline:.1%}"),
        ("largest difference online to offline", f"{outcome.difference:.1e}"),
        ("time per step", f"{outcome.step_us:.0f} us"),
        (
            f"time per step, recomputing the window of {net.receptive_field}",
            f"{outcome.window_us:.0f} us",
        ),
        ("ratio", f"{ratio:.1f}"),
    ]
    width = max(len(name) for name, _ in rows)
    out.write("\n" + "".join(f"{name:{width}}  {value:>9}\n" for name, value in rows))


def _timed(microseconds: list[float], call: Any) -> Any:
    """The call's result. Its time, until the result is ready, is appended to the list."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    microseconds.append((time.perf_counter() - start) * 1e6)
    return result


def _compile(stream: co.Stream, forward: Any, clip: Any, window: int) -> None:
    stream(clip[:, :, 0])
    stream.reset()
    forward(clip)
    forward(clip[:, :, :window])
