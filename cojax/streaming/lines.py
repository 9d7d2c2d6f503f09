"""``cojax stream``: runs a network on samples line by line, as a sensor delivers them."""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cojax.streaming.stream import Stream


class MalformedLineError(ValueError):
    """A line does not hold a sample."""


def parse(line: str, shape: Sequence[int]) -> np.ndarray:
    """Parses a sample ``(1, *shape)`` from numbers separated by commas or white space.

    Raises:
      MalformedLineError: unless there are exactly as many numbers as entries, all of them finite.
    """
    words = line.replace(",", " ").split()
    expected = math.prod(shape)
    if len(words) != expected:
        raise MalformedLineError(f"expected {expected} numbers, got {len(words)}")
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise MalformedLineError(str(error)) from error
    with np.errstate(over="ignore"):
        sample = np.array(values).astype(np.float32)
    for word, value in zip(words, sample, strict=True):
        if not math.isfinite(value):
            raise MalformedLineError(f"{word!r} is not a finite number (of float32)")
    return sample.reshape(1, *shape)


def answer(
    stream: Stream,
    lines: Iterable[Any],
    out: TextIO,
    errors: TextIO,
    labels: Sequence[str] | None = None,
    as_json: bool = False,
    save: str | os.PathLike[str] | None = None,
    parse: Callable[[Any, Sequence[int]], np.ndarray] = parse,
) -> int:
    """Takes a step for each line, and immediately writes a line with its output.

    It writes the number of the line and the output: the most probable label and its value if there
    are labels, otherwise the numbers; ``-`` if the network emits nothing. A malformed line is
    reported with its number; nothing is written for it, and the stream is not affected.

    Args:
      stream: the stream, with a batch size of 1.
      lines: the samples, in the form that ``parse`` expects.
      out: where the outputs are written.
      errors: where malformed lines are reported.
      labels: names of the output's entries.
      as_json: whether outputs are written as JSON objects ``{"line", "output"}``, with a "label" if
        there are labels.
      save: where the stream is saved when the lines end.
      parse: makes a sample from a line and the sample's shape, or raises a
        :class:`MalformedLineError`.

    Returns:
      The number of malformed lines.
    """
    malformed = 0
    try:
        for number, line in enumerate(lines, 1):
            try:
                x_t = parse(line, stream.spec.shape[1:])
            except MalformedLineError as error:
                malformed += 1
                print(f"line {number}: {error}", file=errors, flush=True)
                continue
            y = stream(x_t)
            values = None if y is None else np.asarray(y[0])
            print(_answer(number, values, labels, as_json), file=out, flush=True)
    finally:
        if save is not None:
            stream.save(save)
    return malformed


def _answer(
    number: int, values: np.ndarray | None, labels: Sequence[str] | None, as_json: bool
) -> str:
    label, score = None, 0.0
    if values is not None and labels is not None:
        scores = values.reshape(len(labels), -1).mean(axis=1)
        label, score = labels[int(scores.argmax())], scores.max()
    if as_json:
        content: dict[str, Any] = {
            "line": number,
            "output": None if values is None else values.tolist(),
        }
        return json_line(content | ({"label": label} if labels is not None else {}))
    if values is None:
        return f"{number}\t-"
    if label is not None:
        return f"{number}\t{label}\t{score:.3f}"
    return f"{number}\t" + " ".join(f"{value:.6g}" for value in values.ravel())


def open_stream(
    net: Any, variables: Any, shape: Sequence[int], state: str | os.PathLike[str] | None
) -> Stream:
    """Opens a stream of samples of this shape: resumed if its state file exists, else fresh."""
    if state is not None and Path(state).exists():
        stream = Stream.resume(state, net, variables)
        if stream.spec.shape != (1, *shape):
            raise ValueError(f"{state} is of samples {stream.spec.shape[1:]}, not {tuple(shape)}")
        return stream
    if state is not None and not os.access(Path(state).parent, os.W_OK):
        raise ValueError(f"{state} could not be saved when the input ends: no folder to write to")
    return Stream(net, variables, (1, *shape))


def json_line(content: Any) -> str:
    """Formats a line of JSON, which knows only finite numbers: others become null."""
    return json.dumps(_finite(content), allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
