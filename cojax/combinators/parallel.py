"""Modules that broadcast, dispatch and process several streams in parallel.

Branches of unequal delay are aligned automatically: a branch that would emit ``n`` steps before the
slowest is fed ``n`` steps late. Delaying its *input* is always correct; delaying its output would
be correct only if the branch's stride divides ``n``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from cojax.buffers import DelayLine
from cojax.chunks import Chunk, locally
from cojax.combinators.reduce import (
    Reduction,
    reduced_spec,
    reduction,
    require_one_length,
)
from cojax.container import Container, keep, named
from cojax.errors import InputError
from cojax.frames import Signal, State, flat_streams, map_streams
from cojax.layers.arguments import require_positive
from cojax.module import CoModule
from cojax.timing import Timing, in_parallel


class _Routing(CoModule):
    """Passes streams on unchanged, as specs, clips, signals and chunks."""

    @nn.nowrap
    def routed(self, streams: Any) -> Any:
        """Returns the output streams."""
        raise NotImplementedError

    def output_spec(self, x: Any) -> Any:
        return self.routed(x)

    def clip(self, x: Any, train: bool = False) -> Any:
        return self.routed(x)

    def step(self, state: State, signal: Any, train: bool = False) -> tuple[Any, State]:
        return self.routed(signal), state

    def chunk(self, state: State, chunk: Any) -> tuple[Any, State]:
        return self.routed(chunk), state


class Broadcast(_Routing):
    """Copies one stream to several.

    Source: ``continual.Broadcast``.

    Example::

        a, b = co.Broadcast(2).apply({}, jnp.ones((1, 3, 5)))
        assert a is b

    Attributes:
      num_streams: the number of copies; if None, a :class:`Sequential` infers it from the
        :class:`Parallel` that follows.

    Shapes:
      a stream to a tuple of ``num_streams`` of them.

    Raises:
      ValueError: at construction, for a number of streams that is not positive.
      InputError: if the number of streams is unknown.
    """

    num_streams: int | None = None

    def __post_init__(self) -> None:
        if self.num_streams is not None:
            require_positive(num_streams=self.num_streams)
        super().__post_init__()

    @nn.nowrap
    def routed(self, streams: Any) -> Any:
        if self.num_streams is None:
            raise InputError(
                "Broadcast does not know its number of streams; give num_streams, or put a "
                "Parallel directly after it in a Sequential"
            )
        return (streams,) * self.num_streams


class ParallelDispatch(_Routing):
    """Reorders, copies and groups streams.

    ``ParallelDispatch([1, 0])`` swaps two streams, ``[0, 0, 1]`` copies the first, and
    ``[[0, 1], 2]`` groups the first two into a tuple.

    Source: ``continual.ParallelDispatch``.

    Example::

        zeros, ones = jnp.zeros((1, 1, 3)), jnp.ones((1, 1, 3))
        swapped = co.ParallelDispatch([1, 0]).apply({}, (zeros, ones))
        assert swapped[0] is ones and swapped[1] is zeros

    Attributes:
      dispatch_mapping: for each output, the number of an input stream, or a sequence of these.

    Shapes:
      a tuple of streams to a tuple of streams, or of tuples of them, as mapped.

    Raises:
      ValueError: at construction, for any other kind of mapping.
      InputError: for a stream that does not exist.
    """

    dispatch_mapping: Sequence[Any]

    def __post_init__(self) -> None:
        self.dispatch_mapping = _checked_mapping(self.dispatch_mapping)
        super().__post_init__()

    @nn.nowrap
    def routed(self, streams: Any) -> Any:
        wanted = max(flat_streams(self.dispatch_mapping))
        if not isinstance(streams, tuple) or wanted >= len(streams):
            given = f"{len(streams)} streams" if isinstance(streams, tuple) else "a single stream"
            raise InputError(f"ParallelDispatch refers to stream {wanted}, but was given {given}")
        return map_streams(lambda number: streams[number], self.dispatch_mapping)


def _checked_mapping(mapping: Any) -> Any:
    if isinstance(mapping, int) and mapping >= 0:
        return mapping
    if isinstance(mapping, Sequence) and not isinstance(mapping, str) and mapping:
        return tuple(_checked_mapping(each) for each in mapping)
    raise ValueError(
        f"dispatch_mapping is made of sequences of stream numbers from 0 on, got {mapping!r}"
    )


class _Branches(Container):
    """Modules that run in parallel, aligned to the slowest."""

    auto_delay: bool = True

    def __post_init__(self) -> None:
        timings = {name: child.timing for name, child in self.children().items()}
        if not timings:
            raise ValueError(f"{type(self).__name__} needs at least one module")
        in_parallel(timings)
        delays = {name: timing.delay for name, timing in timings.items()}
        if not self.auto_delay and len(set(delays.values())) > 1:
            raise ValueError(
                f"without auto_delay parallel branches must share one delay, but have {delays}"
            )
        super().__post_init__()

    @property
    def timing(self) -> Timing:
        return in_parallel({name: child.timing for name, child in self.children().items()})

    @nn.nowrap
    def shifts(self) -> dict[str, int]:
        """Returns the number of steps by which the input of each branch is delayed."""
        delays = {name: child.timing.delay for name, child in self.children().items()}
        return {name: max(delays.values()) - delay for name, delay in delays.items()}

    @property
    def _line(self) -> DelayLine:
        """The delay line of one stream that all branches share."""
        return DelayLine.of(max(self.shifts().values()))


class Parallel(_Branches):
    """Runs modules in parallel, each on its own stream.

    The modules are given as ``Parallel(a, b)``, as ``Parallel([a, b])`` or, with names, as
    ``Parallel({"first": a, "second": b})``.

    Source: ``continual.Parallel``. (There the alignment of strided branches is wrong.)

    Example::

        net = co.Parallel(co.Delay(1), co.Delay(3))
        assert net.delay == 3  # the first is fed two steps late

        x = jnp.arange(5.0).reshape(1, 1, 5)
        state = net.init_state((x[:, :, 0], x[:, :, 0]))
        (a, b), _ = net.apply({}, state, (x, x), method="forward_steps")
        assert a.dense().tolist() == b.dense().tolist() == [[[0, 1]]]

    Attributes:
      auto_delay: whether branches of unequal delay are aligned; otherwise they are refused.

    Shapes:
      a tuple of streams to a tuple of as many streams.

    Raises:
      ValueError: at construction, if the branches do not share one temporal stride.
      InputError: if there are not as many streams as modules.
    """

    def __init__(
        self,
        *modules: CoModule | list[CoModule] | Mapping[str, CoModule],
        auto_delay: bool = True,
        layers: Mapping[str, CoModule] | None = None,
        order: tuple[str, ...] | None = None,
        **linen: Any,
    ):
        self._construct(**named(modules, layers, order), auto_delay=auto_delay, **linen)

    @nn.nowrap
    def _each(self, streams: Any) -> list[tuple[str, Any]]:
        """Returns the name of every module, with its stream."""
        if not isinstance(streams, tuple) or len(streams) != len(self.order):
            given = len(streams) if isinstance(streams, tuple) else 1
            raise InputError(
                f"Parallel runs {len(self.order)} streams, got {given}; Broadcast or "
                "ParallelDispatch them first"
            )
        return list(zip(self.order, streams, strict=True))

    def output_spec(self, x: Any) -> Any:
        return tuple(self.child_spec(name, stream) for name, stream in self._each(x))

    def clip(self, x: Any, train: bool = False) -> Any:
        return tuple(self.child_clip(name, stream, train) for name, stream in self._each(x))

    def fresh_state(self, x: Any) -> State:
        shifts, states, late = self.shifts(), {}, {}
        for name, stream in self._each(x):
            states[name] = self.child_state(name, stream)
            if shifts[name]:
                # A branch that takes several streams has a delay line for each of them.
                lines = [DelayLine.of(shifts[name]).fresh(spec) for spec in flat_streams(stream)]
                late[name] = {str(i): line for i, line in enumerate(lines)}
        return keep(states, late)

    @nn.nowrap
    def flow_through(self, state: State, flow: Any, train: bool) -> tuple[Any, State]:
        shifts, states, late, outputs = self.shifts(), {}, {}, []
        for name, stream in self._each(flow):
            if shifts[name]:
                stream, late[name] = _held_back(state["late"][name], stream, shifts[name])
            output, states[name] = self.child_step(name, state, stream, train)
            outputs.append(output)
        return tuple(outputs), keep(states, late)


def _held_back(state: State, streams: Any, steps: int) -> tuple[Any, State]:
    """Delays streams, each by its own delay line."""
    line = DelayLine.of(steps)
    after = {}
    numbers = iter(range(len(state)))

    def held(flow: Signal | Chunk) -> Signal | Chunk:
        place = str(next(numbers))
        pushed = line.push(state[place], flow)
        after[place] = pushed.after
        return pushed.held(steps)

    return map_streams(held, streams), after


class BroadcastReduce(_Branches):
    """Runs modules in parallel on one stream and reduces their outputs.

    The same as ``Sequential(Broadcast(), Parallel(...), Reduce(reduce))``, with one ring of inputs
    that all branches share.

    Source: ``continual.BroadcastReduce``. (There the alignment of strided branches is wrong.)

    Example::

        short, long = co.Conv1d(2, 4, kernel_size=1), co.Conv1d(2, 4, kernel_size=5, padding=2)
        net = co.BroadcastReduce(short, long, reduce="concat")
        assert net.delay == 2
        variables = net.init(jax.random.key(0), method="declare")
        assert net.apply(variables, jnp.ones((1, 2, 6))).shape == (1, 8, 6)

    Attributes:
      reduce: as in :class:`Reduce`.
      auto_delay: whether branches of unequal delay are aligned; otherwise they are refused.

    Shapes:
      a stream to a stream.

    Raises:
      ValueError: at construction, if the branches do not share one temporal stride, or there are
        fewer than two.
      InputError: if the outputs of the branches cannot be reduced.
    """

    reduce: Reduction = "sum"

    def __init__(
        self,
        *modules: CoModule | list[CoModule] | Mapping[str, CoModule],
        reduce: Reduction = "sum",
        auto_delay: bool = True,
        layers: Mapping[str, CoModule] | None = None,
        order: tuple[str, ...] | None = None,
        **linen: Any,
    ):
        fields = named(modules, layers, order)
        self._construct(**fields, reduce=reduce, auto_delay=auto_delay, **linen)

    def __post_init__(self) -> None:
        reduction(self.reduce)
        if len(self.order) < 2:
            raise ValueError(f"BroadcastReduce needs at least two modules, got {len(self.order)}")
        super().__post_init__()

    def output_spec(self, x: Any) -> Any:
        if isinstance(x, tuple):
            raise InputError(f"{type(self).__name__} takes one stream, got {len(x)}; use Parallel")
        specs = tuple(self.child_spec(name, x) for name in self.order)
        return reduced_spec(self.reduce, specs)

    def clip(self, x: Any, train: bool = False) -> Any:
        # By their timing, since an adaptive pool reduces a clip to one step, which is broadcast.
        require_one_length([c.timing.n_out(x.shape[2]) for c in self.children().values()])
        return reduction(self.reduce)([self.child_clip(name, x, train) for name in self.order])

    def fresh_state(self, x: Any) -> State:
        states = {name: self.child_state(name, x) for name in self.order}
        return keep(states, self._line.fresh(x))

    @nn.nowrap
    def flow_through(self, state: State, flow: Any, train: bool) -> tuple[Any, State]:
        line, shifts, states, outputs = self._line, self.shifts(), {}, []
        late = line.push(state.get("late", {}), flow.tidied())
        for name in self.order:
            held = late.held(shifts[name])
            output, states[name] = self.child_step(name, state, held, train)
            outputs.append(output)
        return locally(reduction(self.reduce), tuple(outputs)), keep(states, late.after)
