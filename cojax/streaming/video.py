"""Reads video files and cameras as the steps of a network."""

import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from cojax.optional import require

# Of pixels scaled to [0, 1], as the networks of the zoo were trained.
MEAN, STD = 0.45, 0.225

# Containers round times, many of them to milliseconds.
_ROUNDING = Fraction(1, 1000)
# If times jump by more than this many seconds, the video was cut and is not merely slow.
_CUT = 5
# Announced durations are approximate: fewer missing seconds than this mean nothing.
_SLACK = Fraction(1, 2)


class BrokenVideoError(ValueError):
    """A video breaks off before its end, after the frames that could be read."""


class Video:
    """The frames of a file or a camera.

    Attributes:
      source: the file, its URL, or the camera: a number or a ``/dev/video`` device.
      live: whether it is a camera.
      seconds: its duration according to its header; None if unknown.
    """

    def __init__(self, source: str) -> None:
        """Opens the video.

        Raises:
          ImportError: if PyAV is not installed.
          ValueError: if it cannot be opened, or has no video stream.
        """
        self._av = require("av", "reading videos", "PyAV", "video")
        camera = _camera(source)
        self.source = source
        self.live = camera is not None
        where, format = camera or (source, None)
        try:
            self._container = self._av.open(where, format=format)
        except self._av.FFmpegError as error:
            what = f"camera {source}" if self.live else source
            raise ValueError(f"{what} does not open: {error.strerror}") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{source} has no video stream")
        self._stream = self._container.streams.video[0]
        if not self.live:  # Threads that each decode a frame delay some of them.
            self._stream.thread_type = "AUTO"
        self.seconds = None if self.live else self._announced()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_error: object) -> None:
        self._container.close()

    def frames(self) -> Iterator[tuple[Fraction, Any]]:
        """Yields pairs of a time, in seconds since the first frame, and the frame.

        Raises:
          BrokenVideoError: after the last frame that could be read, if there should be more.
        """
        reached = Fraction(0)
        first = None
        try:
            for number, frame in enumerate(self._decoded()):
                seconds = (
                    number / self._rate() if frame.pts is None else frame.pts * frame.time_base
                )
                first = seconds if first is None else first
                reached = seconds - first
                yield reached, frame
        except self._av.FFmpegError as error:
            raise BrokenVideoError(
                f"{self.source} is broken after {float(reached):.1f} s: {error.strerror}"
            ) from error
        if first is None:
            raise BrokenVideoError(f"{self.source} holds no frame that could be read")
        if self.seconds is not None and self.seconds - reached - 1 / self._rate() > _SLACK:
            raise BrokenVideoError(
                f"{self.source} is cut off: it ends at {float(reached):.1f} s, "
                f"and announces {float(self.seconds):.1f} s"
            )

    def _decoded(self) -> Iterator[Any]:
        for packet in self._container.demux(self._stream):
            try:
                yield from packet.decode()
            except self._av.InvalidDataError:
                # A camera continues after a frame that was corrupted in transit.
                if not self.live:
                    yield from self._stream.decode(None)  # The frames that are still buffered.
                    raise

    def _rate(self) -> Fraction:
        return self._stream.guessed_rate or Fraction(30)

    def _announced(self) -> Fraction | None:
        if self._stream.duration is not None:
            return self._stream.duration * self._stream.time_base
        # The duration of the container is that of its longest stream.
        if self._container.duration is not None and len(self._container.streams) == 1:
            return Fraction(self._container.duration, self._av.time_base)
        return None


def at_rate(
    frames: Iterable[tuple[Fraction, Any]], fps: Fraction, live: bool = False
) -> Iterator[tuple[Fraction, Any]]:
    """Samples timed frames ``fps`` times a second: at each tick, the first frame not before it.

    Args:
      frames: pairs of a time in seconds and a frame.
      fps: the number of ticks per second.
      live: whether ticks that pass without a frame are skipped: catching up on them would make a
        network that is slower than its camera lag further and further. If False, the next frame
        serves for all of them.

    Returns:
      Pairs of the time of a tick in seconds and the frame sampled at it.
    """
    period = 1 / fps
    due = None
    for seconds, frame in frames:
        if due is None or abs(seconds - due) > _CUT + period:
            due = seconds
        while due <= seconds + _ROUNDING:
            if not live or due + period > seconds + _ROUNDING:
                yield due, frame
            due += period


def image_of(frame: Any, size: int) -> np.ndarray:
    """The step ``(1, 3, size, size)`` of a frame: scaled, centre-cropped, upright, normalised."""
    short = min(frame.width, frame.height)
    width, height = (side * size // short for side in (frame.width, frame.height))
    scaled = frame.reformat(width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    middle = scaled[top : top + size, left : left + size]
    upright = np.rot90(middle, round(frame.rotation / 90))
    return ((upright.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]


def _camera(source: str) -> tuple[str, str] | None:
    """The device and FFmpeg's format of a camera, or None for a file."""
    if source.startswith("/dev/video"):
        return source, "v4l2"
    if not source.isdecimal():
        return None
    return (source, "avfoundation") if sys.platform == "darwin" else (f"/dev/video{source}", "v4l2")
