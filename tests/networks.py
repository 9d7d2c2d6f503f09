"""Random networks, the same for the same seed.

A network is a Sequential of random blocks. A branch of a parallel block is drawn for the stride
and for the number of steps that it must shrink its clip by, so that branches of quite different
delays, fields and paddings give clips of one length.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cojax as co
from cojax.module import declared, walk

# One of each activation at least, for clips of four channels.
ACTIVATIONS = (
    co.Threshold(0.5, 2.0),
    co.ReLU(),
    co.RReLU(),
    co.Hardtanh(-0.5, 3.0),
    co.ReLU6(),
    co.Sigmoid(),
    co.Hardsigmoid(),
    co.Tanh(),
    co.SiLU(),
    co.Hardswish(),
    co.ELU(1.5),
    co.CELU(1.5),
    co.SELU(),
    co.GLU(dim=1),
    co.GELU(),
    co.GELU("tanh"),
    co.Hardshrink(),
    co.LeakyReLU(0.2),
    co.LogSigmoid(),
    co.Softplus(),
    co.Softplus(beta=-0.5, threshold=500),
    co.Softshrink(),
    co.PReLU(),
    co.PReLU(4, init=-0.1),
    co.Softsign(),
    co.Tanhshrink(),
    co.Softmin(dim=1),
    co.Softmax(dim=1),
    co.LogSoftmax(dim=1),
)

LONGEST_FIELD = 40
MOST_MODULES = 14
FEWEST_OUTPUTS = 4


def random_network(seed: int, for_continual: bool = False) -> tuple[co.CoModule, tuple[int, ...]]:
    """A network, and the shape of a clip ``(B, C, T, *S)`` for it.

    Args:
      seed: what decides everything.
      for_continual: whether to keep to what ``continual`` computes correctly: no dilated time, no
        rounding up, no uncounted padding in time, no delays behind strides, no cropped delays.

    Returns:
      The network and the shape. Its clip gives at least four outputs.
    """
    rng = np.random.default_rng(seed)
    while True:
        draw = _Draw(rng, space=int(rng.random() < 0.25), for_continual=for_continual)
        channels = draw.channels()
        net = draw.network(channels)
        if net.timing.receptive_field > LONGEST_FIELD or len(list(walk(net))) > MOST_MODULES:
            continue
        shape = _clip_shape(net, (int(rng.integers(1, 3)), channels), (5,) * draw.space, rng)
        if shape is not None:
            return net, shape


def random_variables(net: co.CoModule, seed: int, dtype: type = np.float32) -> dict[str, Any]:
    """Variables of the network's own scale, drawn without compiling an initialiser for each."""
    rng = np.random.default_rng(seed)
    specs = declared(net)

    def drawn(path: Any, spec: jax.ShapeDtypeStruct) -> jax.Array:
        if np.issubdtype(spec.dtype, np.integer):
            return jnp.zeros(spec.shape, spec.dtype)
        if path[-1].key in ("var", "scale"):
            return jnp.asarray(rng.uniform(0.5, 1.5, spec.shape), dtype)
        fan_in = max(1, int(np.prod(spec.shape[:-1])))
        return jnp.asarray(rng.normal(size=spec.shape) / np.sqrt(fan_in), dtype)

    return jax.tree_util.tree_map_with_path(drawn, specs)


def shows_its_field(net: co.CoModule) -> bool:
    """Whether the Jacobian of one output of a clip shows the whole of the receptive field.

    A maximum may never take the ends of its field, and a Conditional never the longer branch. A
    recurrent layer sees beyond its own.
    """
    modules = [module for _, module in walk(net)]
    return not any(
        isinstance(module, co.MaxPool1d | co.MaxPool2d | co.RNN | co.LSTM | co.GRU)
        or getattr(module, "reduce", None) == "max"
        or (isinstance(module, co.Conditional) and _branches_differ(module))
        for module in modules
    )


def _branches_differ(module: co.Conditional) -> bool:
    fields = {child.timing[:3] for child in module.children().values()}
    return len(fields) > 1


def _clip_shape(
    net: co.CoModule, front: tuple[int, int], space: tuple[int, ...], rng: np.random.Generator
) -> tuple[int, ...] | None:
    """The shape of a clip with enough outputs, a few steps longer than it must be.

    Strided branches may give clips of one length only for some lengths of clip. None if the
    space is too small for the network.
    """
    steps = 1
    while net.timing.n_out(steps) < FEWEST_OUTPUTS:
        steps += 1
    first = steps + int(rng.integers(3))
    variables = jax.eval_shape(lambda key: net.init(key, method="declare"), jax.random.key(0))
    for steps in range(first, first + net.timing.stride + 1):
        clip = jax.ShapeDtypeStruct((*front, steps, *space), np.float32)
        try:
            y = jax.eval_shape(net.apply, variables, clip)
        except co.InputError:
            continue
        if y.shape[2] == net.timing.n_out(steps):
            return clip.shape
    return None


@dataclasses.dataclass
class _Draw:
    """Draws blocks for clips with ``space`` spatial axes."""

    rng: np.random.Generator
    space: int
    for_continual: bool

    def pick(self, *options: object) -> object:
        return options[self.rng.integers(len(options))]

    def number(self, low: int, high: int) -> int:
        """From low to high, both counted."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def channels(self) -> int:
        return self.number(2, 4)

    # Networks.

    def network(self, channels: int) -> co.CoModule:
        blocks: list[co.CoModule] = []
        for _ in range(self.number(1, 3)):
            block, channels = self.block(channels, depth=self.pick(1, 1, 2))
            blocks.append(block)
            if self.chance(0.4):
                blocks.append(self.local(channels))
        if self.chance(0.3):
            return co.Sequential({f"{11 - i}": block for i, block in enumerate(blocks)})
        return co.Sequential(*blocks)

    def block(self, channels: int, depth: int) -> tuple[co.CoModule, int]:
        kinds: list[Callable[[int, int], tuple[co.CoModule, int]]] = [
            self.convolution,
            self.convolution,
            self.pool,
            self.held,
        ]
        if not self.space:
            kinds.append(self.recurrent)
        if depth:
            kinds += [self.broadcast_reduce, self.broadcast_reduce, self.streams]
            kinds += [self.residual, self.nested, self.conditional]
        return kinds[self.rng.integers(len(kinds))](channels, depth)

    def nested(self, channels: int, depth: int) -> tuple[co.CoModule, int]:
        first, middle = self.block(channels, depth - 1)
        last, out = self.block(middle, depth - 1)
        return co.Sequential(first, self.local(middle), last), out

    # Layers.

    def local(self, channels: int) -> co.CoModule:
        """A layer without memory that keeps shapes."""
        norm = co.BatchNorm2d if self.space else co.BatchNorm1d
        instance = co.InstanceNorm2d if self.space else co.InstanceNorm1d
        # Of two channels that are nearly alike, a small eps would magnify the rounding.
        beyond_continual = [
            co.LayerNorm(channels, eps=0.1, channel_dim=1),
            co.GroupNorm(1, channels, eps=0.1, per_step=True),
        ]
        return self.pick(
            *([] if self.for_continual else beyond_continual),
            instance(channels, affine=True, track_running_stats=True),
            co.GELU(),
            co.LeakyReLU(0.2),
            co.PReLU(channels),
            norm(channels),
            norm(channels, affine=False),
            co.ReLU(),
            co.SiLU(),
            co.Sigmoid(),
            co.Softmax(dim=1),
            co.Dropout(),
            co.Identity(),
            co.Add(float(self.number(1, 3))),
            co.Multiply(np.linspace(-1.5, 2, channels).reshape(-1, *(1,) * (1 + self.space))),
            co.Linear(channels, channels, channel_dim=1),
        )

    def convolution(self, channels: int, depth: int) -> tuple[co.CoModule, int]:
        out = self.channels()
        kernel, dilation = self.number(1, 4), self.dilation()
        padding = self.number(0, dilation * (kernel - 1))
        # A pointwise convolution that skips steps is wrong in continual.
        stride = self.pick(1, 1, 2, 3) if kernel > 1 or not self.for_continual else 1
        return self.conv(channels, out, kernel, stride, padding, dilation), out

    def conv(
        self, channels: int, out: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> co.CoModule:
        """A convolution that keeps space."""
        groups = channels if channels == out and self.chance(0.2) else 1
        bias = self.chance(0.8)
        if not self.space:
            return co.Conv1d(channels, out, kernel, stride, padding, dilation, groups, bias)
        wide = self.pick(1, 3)
        return co.Conv2d(
            channels,
            out,
            (kernel, wide),
            (stride, 1),
            (padding, wide // 2),
            (dilation, 1),
            groups,
            bias,
        )

    def dilation(self) -> int:
        return 1 if self.for_continual else self.pick(1, 1, 2)

    def pool(self, channels: int, depth: int) -> tuple[co.CoModule, int]:
        kernel, dilation = self.number(1, 3), self.dilation()
        padding = self.number(0, (dilation * (kernel - 1) + 1) // 2)
        stride = self.pick(1, 1, 2, 3)
        return self.pooling(kernel, stride, padding, dilation, self.chance(0.3)), channels

    def pooling(
        self, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
    ) -> co.CoModule:
        """A pool, of time and now and then of space, which it keeps."""
        ceil_mode = ceil_mode and not self.for_continual
        counted = self.for_continual or self.chance(0.5)
        wide = self.pick(1, 3)
        sizes = [(kernel, wide), (stride, 1), (padding, wide // 2)]
        if not self.space:
            sizes = [(n,) for n, _ in sizes]
        dilations = (dilation, 1)[: 1 + self.space]
        if self.chance(0.5):
            maximum = co.MaxPool2d if self.space else co.MaxPool1d
            return maximum(*sizes, dilation=dilations, ceil_mode=ceil_mode)
        average = co.AvgPool2d if self.space else co.AvgPool1d
        return average(*sizes, ceil_mode=ceil_mode, count_include_pad=counted, dilation=dilations)

    def held(self, channels: int, depth: int) -> tuple[co.CoModule, int]:
        steps = self.number(1, 4)
        if self.for_continual or self.chance(0.4):
            return self.pick(co.Delay(steps), co.Skip(steps)), channels
        crops = (self.number(0, 3), self.number(0, steps))
        shrink = self.pick(True, "lagging", crops)
        return co.Delay(steps, auto_shrink=shrink), channels

    def recurrent(self, channels: int, depth: int) -> tuple[co.CoModule, int]:
        hidden = self.channels()
        kind = self.pick(co.RNN, co.LSTM, co.GRU)
        return kind(channels, hidden, num_layers=self.number(1, 2), bias=self.chance(0.8)), hidden

    # Blocks of branches.

    def broadcast_reduce(self, channels: int, depth: int) -> tuple[co.CoModule, int]:
        branches, out, reduce = self.branches(channels, depth)
        if self.chance(0.3):
            branches = dict(zip(("b", "a", "10", "2"), branches, strict=False))
            return co.BroadcastReduce(branches, reduce=reduce), out
        return co.BroadcastReduce(*branches, reduce=reduce), out

    def streams(self, channels: int, depth: int) -> tuple[co.CoModule, int]:
        """The same, by several streams."""
        branches, out, reduce = self.branches(channels, depth)
        return co.Sequential(co.Broadcast(), co.Parallel(*branches), co.Reduce(reduce)), out

    def branches(self, channels: int, depth: int) -> tuple[list[co.CoModule], int, str]:
        reduce = self.pick("sum", "sum", "mul", "max", "concat")
        stride = self.pick(1, 1, 2, 3)
        # What continual delays is right with a stride of 1, and without a crop.
        aligned = self.for_continual and stride > 1
        shrinks_by = 0 if self.for_continual and not aligned else self.number(0, 3)
        out, total, branches = self.channels(), 0, []
        kernel = self.number(2, 4)
        for _ in range(self.pick(2, 2, 3)):
            own = self.channels() if reduce == "concat" else out
            total += own
            if aligned:
                branches.append(self.conv(channels, own, kernel, stride, 0, 1))
            else:
                branches.append(self.branch(channels, own, stride, shrinks_by, depth - 1))
        return branches, total if reduce == "concat" else out, reduce

    def branch(
        self, channels: int, out: int, stride: int, shrinks_by: int, depth: int
    ) -> co.CoModule:
        """A module that makes a clip this much shorter, and then takes every stride-th step."""
        kinds: list[Callable[..., co.CoModule]] = [self.shrinking_conv, self.shrinking_pool]
        if stride == 1:
            kinds.append(self.shrinking_delay)
        if depth:
            kinds += [self.shrinking_pair, self.shrinking_fork]
        return kinds[self.rng.integers(len(kinds))](channels, out, stride, shrinks_by, depth)

    def shrinking_conv(
        self, channels: int, out: int, stride: int, shrinks_by: int, depth: int
    ) -> co.CoModule:
        padding = self.number(0, 2)
        extent = shrinks_by + 2 * padding
        dilation = self.dilation() if extent % 2 == 0 else 1
        if not extent and stride > 1 and self.for_continual:
            padding, extent = 1, 2
        return self.conv(channels, out, extent // dilation + 1, stride, padding, dilation)

    def shrinking_pool(
        self, channels: int, out: int, stride: int, shrinks_by: int, depth: int
    ) -> co.CoModule:
        padding = self.number(0, 1)
        pool = self.pooling(shrinks_by + 2 * padding + 1, stride, padding, 1, ceil_mode=False)
        return co.Sequential(pool, self.conv(channels, out, 1, 1, 0, 1))

    def shrinking_delay(
        self, channels: int, out: int, stride: int, shrinks_by: int, depth: int
    ) -> co.CoModule:
        front = self.number(0, shrinks_by)
        back = shrinks_by - front
        delay = co.Delay(back + self.number(0, 3), auto_shrink=(front, back))
        if channels == out:
            return delay
        return co.Sequential(delay, self.conv(channels, out, 1, 1, 0, 1))

    def shrinking_pair(
        self, channels: int, out: int, stride: int, shrinks_by: int, depth: int
    ) -> co.CoModule:
        """The stride first or last, and all that shrinks in front of it."""
        middle = self.channels()
        if self.chance(0.5):
            first = self.branch(channels, middle, stride, shrinks_by, depth - 1)
            last = self.branch(middle, out, 1, 0, depth - 1)
        else:
            first = self.branch(channels, middle, 1, shrinks_by, depth - 1)
            last = self.branch(middle, out, stride, 0, depth - 1)
        return co.Sequential(first, self.local(middle), last)

    def shrinking_fork(
        self, channels: int, out: int, stride: int, shrinks_by: int, depth: int
    ) -> co.CoModule:
        return co.BroadcastReduce(
            self.branch(channels, out, stride, shrinks_by, 0),
            self.branch(channels, out, stride, shrinks_by, depth - 1),
            reduce=self.pick("sum", "mul"),
        )

    def conditional(self, channels: int, depth: int) -> tuple[co.CoModule, int]:
        """Branches of which one runs, by whether the network is being trained."""
        shrinks_by = 0 if self.for_continual else self.number(0, 2)
        taken = self.pick(True, False)
        first, second = (self.branch(channels, channels, 1, shrinks_by, 1) for _ in range(2))
        if self.for_continual:
            # continual drops pad_end within a Conditional.
            return co.Sequential(first, second), channels
        return co.Conditional(lambda module, x, train: train != taken, first, second), channels

    def residual(self, channels: int, depth: int) -> tuple[co.CoModule, int]:
        shrinks_by = 0 if self.for_continual else self.number(0, 4)
        module = self.branch(channels, channels, 1, shrinks_by, depth - 1)
        shrinks = ["lagging", "leading", *([True, "centered"] if shrinks_by % 2 == 0 else [])]
        reduce = self.pick("sum", "sum", "mul", "max")
        return co.Residual(module, reduce=reduce, residual_shrink=self.pick(*shrinks)), channels
