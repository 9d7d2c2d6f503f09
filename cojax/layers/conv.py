"""Continual convolutions over one temporal and up to two spatial axes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from cojax.buffers import (
    Counter,
    apart,
    cleared,
    following,
    read_before_write,
    replicated,
    ring,
    rolled,
    shown,
    unrolled,
    write,
)
from cojax.checks import require_step
from cojax.chunks import Chunk, begun, join
from cojax.errors import InputError
from cojax.frames import Signal, Spec, State, select
from cojax.layers.arguments import (
    IntOrTuple,
    Padding,
    padded_windows,
    require_one_of,
    require_positive,
    spatial_lengths,
)
from cojax.layers.families import over_axes
from cojax.layers.initializers import Initializer, fan_in_uniform
from cojax.layout import channels_last, channels_second, spec_last
from cojax.module import CoModule
from cojax.ops.convolution import contributions, convolve_clip, convolve_window
from cojax.ops.gradient import recomputed
from cojax.ops.windows import padded
from cojax.timing import Axis, Timing, windowed


class _Conv(CoModule):
    """Convolution over ``(B, C, T, *S)``; a step keeps a ring of the last inputs or partial sums.

    Source: ``torch.nn.Conv3d``, and Hedegaard and Iosifidis, "Continual 3D Convolutional
    Neural Networks for Real-time Processing of Videos", ECCV 2022, https://arxiv.org/abs/2106.00050.

    Example::

        conv = co.Conv3d(3, 8, kernel_size=3, padding=1)
        clip = jnp.ones((1, 3, 5, 4, 4))
        variables = conv.init(jax.random.key(0), clip)
        assert conv.apply(variables, clip).shape == (1, 8, 5, 4, 4)

        state = conv.init_state(clip[:, :, 0])
        frame, state = conv.apply(variables, state, clip[:, :, 0], method="forward_step")
        assert not frame.valid  # conv.delay is 1: the second step emits the first output

    Attributes:
      in_channels, out_channels: the number of channels of the input and of the output.
      kernel_size, stride, padding, dilation: an int, or one for each axis, time first. The padding
        before and after an axis may differ, and is then given as a pair, as in ``((2, 0), 1, 1)``:
        with it, a kernel of 3 steps sees a step and the two before it in ``forward`` too. "same"
        (without a stride) and "valid" are as in torch; the attribute has the numbers.
      groups: the number of blocks of channels that are convolved separately.
      bias: whether to add a bias.
      padding_mode: how the spatial axes are padded: "zeros", "reflect", "replicate" or "circular".
        ``forward`` pads time with zeros.
      temporal_fill: the values before the start and after the end of a stream: "zeros", or
        "replicate" for copies of its first and its last frame. With "replicate", a stream equals
        ``forward`` over replicate-padded time.
      kernel_init, bias_init: initializers; torch's by default.
      param_dtype: the dtype of the parameters. Computation is in the dtype of the input.

    Shapes:
      clip ``(B, in_channels, T, *S)`` to ``(B, out_channels, T', *S')``; step ``(B, in_channels,
      *S)`` to ``(B, out_channels, *S')``; state ``count`` ``()`` and a ring: a ``window`` of inputs
      ``(B, receptive_field - 1, *S, in_channels)``, or ``sums`` of upcoming outputs ``(B,
      receptive_field - 1, *S', out_channels)``; no state if the kernel spans one step and the
      temporal stride is 1.

    Raises:
      ValueError: at construction, for incompatible arguments.
      InputError: for an input of the wrong rank or channel count, or a dtype that is not floating.
    """

    space: ClassVar[int]

    in_channels: int
    out_channels: int
    kernel_size: IntOrTuple
    stride: IntOrTuple = 1
    padding: Padding = 0
    dilation: IntOrTuple = 1
    groups: int = 1
    bias: bool = True
    padding_mode: str = "zeros"
    temporal_fill: str = "zeros"
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        axes = self._axes
        self.kernel_size = tuple(axis.kernel_size for axis in axes)
        self.stride = tuple(axis.stride for axis in axes)
        self.padding = tuple(axis.pads if axis.uneven else axis.padding for axis in axes)
        self.dilation = tuple(axis.dilation for axis in axes)
        sizes = {name: getattr(self, name) for name in ("in_channels", "out_channels", "groups")}
        require_positive(**sizes)
        for name, channels in sizes.items():
            if channels % self.groups:
                raise ValueError(f"{name}={channels} must be a multiple of {self.groups=}")
        require_one_of(
            "padding_mode", self.padding_mode, ("zeros", "reflect", "replicate", "circular")
        )
        require_one_of("temporal_fill", self.temporal_fill, ("zeros", "replicate"))
        if self.padding_mode != "zeros" and not self.space and any(axes[0].pads):
            raise ValueError(
                f"{self.padding_mode=} concerns the spatial axes, of which Conv1d has none; "
                "a stream's start and end are filled by temporal_fill"
            )
        windowed(axes[0])
        super().__post_init__()

    @property
    def _axes(self) -> tuple[Axis, ...]:
        return padded_windows(
            1 + self.space, self.kernel_size, self.stride, self.padding, self.dilation
        )

    @property
    def timing(self) -> Timing:
        return windowed(self._axes[0])

    @property
    def _counter(self) -> Counter:
        memory = self.timing.receptive_field - 1
        first = 1 if self.temporal_fill == "replicate" and memory else 0
        return Counter.for_timing(self.timing, exact=first, slots=max(memory, 1))

    def setup(self) -> None:
        per_group = self.in_channels // self.groups
        size = tuple(axis.kernel_size for axis in self._axes)
        uniform = fan_in_uniform(per_group * math.prod(size))
        shape = (*size, per_group, self.out_channels)
        self.kernel = self.param("kernel", self.kernel_init or uniform, shape, self.param_dtype)
        if self.bias:
            self.offset = self.param(
                "bias", self.bias_init or uniform, (self.out_channels,), self.param_dtype
            )

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, self.space, self.in_channels)
        lengths = spatial_lengths(x, self._axes[1:])
        widest = {"reflect": -1, "circular": 0}.get(self.padding_mode)
        for size, axis in zip(x.shape[2:], self._axes[1:], strict=True):
            if widest is not None and max(axis.pads) > size + widest:
                raise InputError(
                    f"padding_mode={self.padding_mode!r} can pad a spatial axis of {size} by at "
                    f"most {size + widest}, got {max(axis.pads)} for a step of shape {x.shape}"
                )
        return Spec((x.shape[0], self.out_channels, *lengths), x.dtype)

    def clip(self, x: Array, train: bool = False) -> Array:
        self.require_length(x.shape[2])
        return channels_second(self._convolved_clip(channels_last(x), self._axes[0]))

    @property
    def _keeps_sums(self) -> bool:
        """Whether the state holds partial sums of upcoming outputs instead of the last inputs.

        It does where that is faster. In a depthwise convolution one input is read for all sums,
        and these are updated in place: a 3x3x3 kernel takes 0.65 ms instead of 0.90 (54 channels
        of 56x56), and 4.0 ms instead of 23 in a batch of 8. It also does for kernels along time
        alone whose outputs are smaller than their inputs.
        """
        time, *space = self._axes
        if time.kernel_size == 1 or time.stride > 1 or time.dilation > 1:
            return False
        if self.temporal_fill != "zeros":
            return False
        inputs = self.in_channels * math.prod(axis.stride for axis in space)
        if self.groups == self.in_channels > 1:
            return self.out_channels <= 2 * inputs
        along_time = all(axis.kernel_size == 1 for axis in space)
        return self.groups == 1 and along_time and self.out_channels < inputs

    def fresh_state(self, x: Spec) -> State:
        memory = self.timing.receptive_field - 1
        if not memory:
            return self._counter.fresh()
        name, kept = ("sums", self.output_spec(x)) if self._keeps_sums else ("window", x)
        return {name: ring(spec_last(kept), memory), **self._counter.fresh()}

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        count, after = self._counter.of(state), self._counter.advance(state, signal)
        if self._keeps_sums:
            y, after["sums"] = self._added(state["sums"], count, signal)
        elif self.timing.receptive_field > 1:
            y, after["window"] = self._shown(state["window"], count, signal)
        else:
            x, space = self._padded(channels_last(signal.clean()), first=1)
            y = self._convolved(jnp.expand_dims(x, -2), space)
        y = channels_second(y)
        return signal.leaves(y, signal.emitted(count, self.timing), self.timing), after

    def _added(self, sums: Array, count: Array | int, signal: Signal) -> tuple[Array, Array]:
        """Returns the output that this step completes, and the sums with its contributions added.

        The slot of the completed output is reused for a new one.
        """
        count, valid = apart(sums, count, signal.valid)
        signal = dataclasses.replace(signal, valid=valid)
        x, space = self._padded(channels_last(signal.clean()), first=1)
        kernel = self.kernel.astype(x.dtype)

        @recomputed
        def parts(x: Array, kernel: Array, count: Array) -> tuple[Array, Array]:
            return contributions(x, kernel, count, space, self.groups)

        oldest, count = read_before_write(sums, count, x)
        last, added = parts(x, kernel, count)
        # A new output begins in the slot of the one that is now complete.
        sums = select(valid, cleared(sums, count % sums.shape[1]) + added, sums)
        return self._biased(oldest + last), sums

    def _shown(self, inputs: Array, count: Array | int, signal: Signal) -> tuple[Array, Array]:
        """Returns the output for the last inputs and this one, and their ring with this written."""
        time, x = self._axes[0], channels_last(signal.clean())
        if self.temporal_fill == "replicate":
            inputs, x = replicated(inputs, x, count, signal)
        places = count + time.dilation * np.arange(time.kernel_size - 1)
        window, space = self._padded(shown(inputs, x, places), first=1)
        y = self._convolved(window, space)
        return y, write(inputs, x, following(count, y), signal.valid)

    def chunk(self, state: State, chunk: Chunk) -> tuple[Chunk, State]:
        timing, count = self.timing, self._counter.of(state)
        x = channels_last(chunk.clean())
        after = self._counter.advance(state, chunk)
        if self._keeps_sums:
            return self._chunk_of_sums(state, chunk, x, after)
        if timing.receptive_field > 1:
            memory = unrolled(state["window"], count)
            if self.temporal_fill == "replicate":
                memory = begun(memory, x, chunk, count)
            x = join(memory, x, chunk.blank)
            after["window"] = rolled(x, memory.shape[1], self._counter.of(after))
        emitted = chunk.emitted(count, timing)
        x = emitted.covered(x, timing.receptive_field, timing.stride)
        y = channels_second(self._convolved_clip(x, self._axes[0].unpadded))
        return chunk.leaves(y, emitted, timing), after

    def _chunk_of_sums(
        self, state: State, chunk: Chunk, x: Array, after: State
    ) -> tuple[Chunk, State]:
        timing, count = self.timing, self._counter.of(state)
        memory = unrolled(state["sums"], count)
        # Up to the last output that the chunk contributes to.
        time = self._axes[0]._replace(padding=timing.receptive_field - 1, uneven=0)
        sums = self._unbiased_clip(x, time)
        # From the first valid frame on, outputs already have partial sums in the memory.
        began = lax.dynamic_slice_in_dim(sums, chunk.blank, memory.shape[1], axis=1)
        sums = lax.dynamic_update_slice_in_dim(sums, began + memory, chunk.blank, axis=1)
        after["sums"] = rolled(sums, memory.shape[1], self._counter.of(after))
        y = channels_second(self._biased(sums[:, : chunk.steps]))
        return chunk.leaves(y, chunk.emitted(count, timing), timing), after

    def _convolved_clip(self, x: Array, time: Axis) -> Array:
        return self._biased(self._unbiased_clip(x, time))

    def _unbiased_clip(self, x: Array, time: Axis) -> Array:
        """Convolves ``(B, T, *S, C)`` without adding the bias."""
        x, space = self._padded(x, first=2)
        return convolve_clip(x, self.kernel.astype(x.dtype), [time, *space], self.groups)

    def _convolved(self, window: Array, space: Sequence[Axis]) -> Array:
        """Convolves a window ``(B, *S, k, C)`` and adds the bias."""
        kernel = self.kernel.astype(window.dtype)
        return self._biased(convolve_window(window, kernel, space, self.groups))

    def _padded(self, x: Array, first: int) -> tuple[Array, Sequence[Axis]]:
        """Pads the spatial axes, from ``first`` on, in every mode but "zeros".

        Also returns these axes with the padding that remains to be applied.
        """
        space = self._axes[1:]
        if self.padding_mode == "zeros":
            return x, space
        x = padded(x, space, first, self.padding_mode)
        return x, [axis.unpadded for axis in space]

    def _biased(self, y: Array) -> Array:
        return y + self.offset.astype(y.dtype) if self.bias else y


class Conv1d(_Conv):
    __doc__ = over_axes(_Conv.__doc__, 1)
    space = 0


class Conv2d(_Conv):
    __doc__ = over_axes(_Conv.__doc__, 2)
    space = 1


class Conv3d(_Conv):
    __doc__ = over_axes(_Conv.__doc__, 3)
    space = 2
