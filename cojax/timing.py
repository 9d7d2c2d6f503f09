"""When a module emits: receptive field, stride, padding, end and delay, as plain integers.

All figures are in input steps of the module they describe. Output ``k`` sees the inputs
``k * stride - padding`` to ``k * stride - padding + receptive_field - 1`` and is emitted at input
step ``k * stride + delay``. Nothing here depends on JAX.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Axis(NamedTuple):
    """A window that slides along one axis.

    Attributes:
      kernel_size, stride, dilation: of the window.
      padding: the padding before and after.
      ceil_mode: whether a last window may reach past the end.
      uneven: how much more padding there is after than before.
    """

    kernel_size: int
    stride: int
    padding: int
    dilation: int = 1
    ceil_mode: bool = False
    uneven: int = 0

    @property
    def pads(self) -> tuple[int, int]:
        """The padding before, and the padding after."""
        return self.padding, self.padding + self.uneven

    @property
    def unpadded(self) -> "Axis":
        """The same windows, over an axis that needs no padding or is already padded."""
        return self._replace(padding=0, uneven=0)

    @property
    def extent(self) -> int:
        """The number of entries from the first to the last in a window, both included."""
        return self.dilation * (self.kernel_size - 1) + 1

    def pads_over(self, size: int) -> tuple[int, int]:
        """Returns the padding before and after ``size`` entries that the windows see.

        The padding after is negative if no window sees the last entries.
        """
        reach = (self.length(size) - 1) * self.stride + self.extent
        return self.padding, reach - size - self.padding

    def length(self, size: int) -> int:
        """Returns the number of windows over ``size`` entries; none starts past the end."""
        room = size + sum(self.pads) - self.extent
        if not self.ceil_mode:
            return room // self.stride + 1
        windows = -(-room // self.stride) + 1
        return windows - ((windows - 1) * self.stride >= size + self.padding)


class Timing(NamedTuple):
    """The temporal properties of a module.

    Example::

        timing = co.Conv1d(1, 1, kernel_size=3, stride=2, padding=1).timing
        assert timing == co.Timing(receptive_field=3, stride=2, padding=1, end=1, delay=1)
        assert [t for t in range(6) if timing.emits(t)] == [1, 3, 5]

    Attributes:
      receptive_field: input steps that one output sees.
      stride: input steps from one output to the next.
      padding: steps before the first real one that output 0 sees (negative: real steps skipped).
      end: fill steps after the last real one that still emit outputs of ``forward``.
      delay: input steps before the one that emits the first output.
    """

    receptive_field: int = 1
    stride: int = 1
    padding: int = 0
    end: int = 0
    delay: int = 0

    def n_out(self, steps: int) -> int:
        """Returns the number of outputs of ``forward`` for a clip of ``steps`` steps."""
        return len(self.outputs(steps))

    def emits(self, step: int) -> bool:
        """Returns whether an output is emitted at input step ``step`` (counted from 0)."""
        return step >= self.delay and (step - self.delay) % self.stride == 0

    def outputs(self, steps: int) -> range:
        """Returns the input steps at which a clip's outputs are emitted, including the flush."""
        return range(self.delay, steps + self.end, self.stride)


def windowed(time: Axis) -> Timing:
    """Returns the timing of a convolution or a pool with this window along time.

    Raises:
      ValueError: if the padding exceeds ``receptive_field - 1``: the first or the last outputs
        would see no input.
    """
    (padding, end), field = time.pads, time.extent
    if max(padding, end) > field - 1:
        raise ValueError(
            f"a temporal padding of {max(padding, end)} exceeds receptive_field - 1 = {field - 1}: "
            f"the {'first' if padding >= end else 'last'} output would see nothing but padding; "
            "lower the padding"
        )
    if time.ceil_mode:
        end = min(end + time.stride - 1, field - 1)
    return Timing(field, time.stride, padding, end, field - 1 - padding)


def in_sequence(timings: Sequence[Timing]) -> Timing:
    """Returns the timing of modules that run one after another."""
    total = Timing()
    for timing in timings:
        total = Timing(
            receptive_field=total.receptive_field + (timing.receptive_field - 1) * total.stride,
            stride=total.stride * timing.stride,
            padding=total.padding + timing.padding * total.stride,
            end=total.end + timing.end * total.stride,
            delay=total.delay + timing.delay * total.stride,
        )
    return total


def in_parallel(branches: Mapping[str, Timing]) -> Timing:
    """Returns the timing of parallel branches, the inputs of each delayed to match the slowest.

    Raises:
      ValueError: if the branches do not share one stride.
    """
    timings = list(branches.values())
    if len({timing.stride for timing in timings}) > 1:
        strides = ", ".join(f"{name!r}: {timing.stride}" for name, timing in branches.items())
        raise ValueError(
            f"parallel branches must share one temporal stride, but have {{{strides}}}; "
            "give every branch the same product of strides"
        )
    padding = max(timing.padding for timing in timings)
    delay = max(timing.delay for timing in timings)
    return Timing(
        receptive_field=padding + max(t.receptive_field - t.padding for t in timings),
        stride=timings[0].stride,
        padding=padding,
        end=delay + min(t.end - t.delay for t in timings),
        delay=delay,
    )
