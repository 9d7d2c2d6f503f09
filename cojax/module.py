"""The contract that every module fulfils.

A :class:`CoModule` computes the same function in several modes::

    y            = net.apply(variables, clip)                                    # forward
    frame, state = net.apply(variables, state, x_t, method="forward_step")
    frame, state = net.apply(variables, state, xs, method="forward_steps")
    y            = net.apply(variables, clip, method="forward_stream")

and for any clip ``forward_stream(clip) == forward(clip)``. Clips are ``(B, C, T, *S)``: batch,
channel, time and up to two spatial axes; a step is ``(B, C, *S)``.

A layer declares its fields and defines five things: ``timing`` (when it emits), ``output_spec``
(the shape of a step's output), ``clip`` (a whole clip), ``fresh_state`` (the state before the first
step) and ``step`` (one step). If it can compute many steps in a better way than one by one, it also
defines ``chunk``. The public methods check their arguments once and then call these.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core.scope import is_filter_empty
from flax.linen.kw_only_dataclasses import field
from jax import Array

from cojax.buffers import counted_together
from cojax.checks import misfits, require_clips, require_state, require_static
from cojax.chunks import Chunk, is_chunk, locally
from cojax.errors import InputError
from cojax.frames import (
    Frame,
    Signal,
    State,
    flat_streams,
    length_of,
    map_streams,
    spec_of,
    step_spec,
    varying_like,
    with_time,
    without_time,
)
from cojax.layout import channels_second
from cojax.modes import current, require_mode
from cojax.scanning import (
    arriving,
    arriving_in_scan,
    by_steps,
    condensed,
    departing,
    departing_in_scan,
    one_behind_another,
    put_together,
    spread,
)
from cojax.timing import Timing

# Flax's name for the collection of values that a module sows.
_SOWN = "intermediates"
# The fields that Flax adds to those of a module.
_FLAX_FIELDS = ("parent", "name")


class CoModule(nn.Module):
    """A Flax module that runs on clips and, with explicit state, on streams.

    For every module ``net``, its variables and a clip ``x``::

        net.apply(variables, x, method="forward_stream") == net.apply(variables, x)

    Subclasses implement :meth:`timing`, :meth:`output_spec`, :meth:`clip`, :meth:`fresh_state` and
    :meth:`step`; the defaults are those of a layer without memory that keeps the shape of its
    input. Timing and state need neither variables nor a bound module.

    Example::

        class Double(co.CoModule):
            def clip(self, x, train=False):
                return 2 * x

            def step(self, state, signal, train=False):
                return signal.becomes(2 * signal.clean()), state

        net = co.Sequential(Double(), co.Delay(1))
        x = jnp.ones((1, 3, 5))
        assert net.apply({}, x, method="forward_stream").tolist() == net.apply({}, x).tolist()

    Shapes:
      clip ``(B, C, T, *S)``; step ``(B, C, *S)``; tuples of them for several streams.

    Attributes:
      call_mode: the method that ``net.apply(variables, ...)`` runs if none is named: "forward",
        "forward_step", "forward_steps" or "forward_stream". ``net.clone(call_mode="forward_step")``
        is the same network in another mode; :func:`cojax.call_mode` sets the mode temporarily.
    """

    if TYPE_CHECKING:  # mypy mistakes a keyword-only field of linen for a positional one
        call_mode: ClassVar[str] = "forward"
    else:
        call_mode: str = field(default="forward", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        require_mode(self.call_mode)
        super().__post_init__()

    # Whether the shapes of the variables are known without an input.
    declares: ClassVar[bool] = True

    # Fields that do not affect what a stream computes.
    _without_effect: ClassVar[frozenset[str]] = frozenset({"call_mode"})

    _written_init: ClassVar[Callable[..., None] | None] = None

    @nn.nowrap
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "call_mode" and name in vars(self):
            raise AttributeError(
                "the call mode of a network is fixed, for functions compiled with it would not "
                f"notice a change: use net.clone(call_mode={value!r}), or with co.call_mode(...)"
            )
        super().__setattr__(name, value)

    def __init_subclass__(cls, **options: Any) -> None:
        # Methods that need no variables must not set them up, as Flax's wrapper of methods would
        # do; an override does not inherit the mark of nowrap.
        for name in ("children", "output_spec", "fresh_state"):
            if name in cls.__dict__:
                nn.nowrap(cls.__dict__[name])
        # What an inherited chunk computes need not be what an own step computes.
        if "step" in cls.__dict__ and "chunk" not in cls.__dict__:
            cls.chunk = CoModule.chunk  # type: ignore[method-assign]
        # For a class without a constructor of its own Flax generates one from the fields, even
        # over an inherited one.
        if "__init__" in cls.__dict__:
            cls._written_init = nn.nowrap(cls.__dict__["__init__"])
        elif cls._written_init is not None:
            cls.__init__ = cls._written_init  # type: ignore[method-assign]
        own = cls.__dict__.keys() & {"__eq__", "__hash__"}
        super().__init_subclass__(**options)
        if not own:  # Flax's would compare arrays.
            cls.__eq__, cls.__hash__ = CoModule.__eq__, CoModule.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _identity(self) == _identity(other)

    def __hash__(self) -> int:
        return hash((type(self), _identity(self)))

    # For subclasses to implement.

    @property
    def timing(self) -> Timing:
        """When outputs are emitted; see :class:`cojax.Timing`."""
        return Timing()

    @nn.nowrap
    def children(self) -> Mapping[str, "CoModule"]:
        """Returns the child modules by the last part of their torch path, in the order they run.

        By default, these are the modules in the fields of this one.
        """
        fields = ((each.name, getattr(self, each.name)) for each in dataclasses.fields(self))
        return {
            name: value
            for name, value in fields
            if isinstance(value, CoModule) and name not in _FLAX_FIELDS
        }

    @nn.nowrap
    def output_spec(self, x: Any) -> Any:
        """Returns the spec of a step's output, given that of its input.

        Raises:
          InputError: if the input does not fit.
        """
        return x

    @nn.nowrap
    def fresh_state(self, x: Any) -> State:
        """Returns the state before the first step: only arrays, each in its own buffer."""
        return {}

    def clip(self, x: Any, train: bool = False) -> Any:
        """Computes a whole clip at once."""
        raise NotImplementedError(f"{type(self).__name__} must define clip")

    def step(self, state: State, signal: Any, train: bool = False) -> tuple[Any, State]:
        """Computes one step, from a :class:`Signal` to a Signal.

        Only a valid signal advances the state.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step")

    def chunk(self, state: State, chunk: Any) -> tuple[Any, State]:
        """Computes many steps, from a :class:`Chunk` to a Chunk; never in training.

        By default it scans the step.
        """
        valid = map_streams(lambda each: each.valid, chunk)
        values = map_streams(lambda each: by_steps(each.value), chunk)

        def signals_of(xs: Any) -> Any:
            return map_streams(lambda x, ok: Signal(channels_second(x), ok, chunked=True), *xs)

        frames, state = self._scan(state, (values, valid), signals_of, train=False)
        arrived = flat_streams(chunk)[0]
        return map_streams(lambda frame: condensed(frame, arrived, self.timing), frames), state

    @property
    def regular(self) -> bool:
        """Whether the timing alone determines which steps emit an output."""
        return all(child.regular for child in self.children().values())

    # For users to call.

    @property
    def receptive_field(self) -> int:
        """The number of input steps that one output sees."""
        return self.timing.receptive_field

    @property
    def delay(self) -> int:
        """The number of input steps before the one that emits the first output."""
        return self.timing.delay

    @property
    def stride(self) -> Any:
        """The strides, the temporal one first."""
        return (self.timing.stride,)

    @property
    def padding(self) -> Any:
        """The paddings, the temporal one first."""
        return (self.timing.padding,)

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        """Runs the method that the call mode names, which is :meth:`forward` by default."""
        return getattr(self, current(self.call_mode))(*args, **arguments)

    @final
    def forward(self, x: Any, train: bool = False) -> Any:
        """Computes a whole clip at once, as the ``torch.nn`` module would.

        Args:
          x: clip ``(B, C, T, *S)``, or a tuple of clips for a module with several streams.
          train: whether dropout is active and batch norms use (and track) the statistics of the
            clip.

        Returns:
          The outputs ``(B, C', T', *S')``, with ``T' = timing.n_out(T)``.

        Raises:
          InputError: if the clip does not fit the network or is too short for it.
        """
        require_static(train=train)
        require_clips("forward", x)
        self.output_spec(map_streams(lambda clip: without_time(spec_of(clip)), x))
        x = map_streams(jnp.asarray, x)
        return self.clip(x, train=train)

    @final
    def forward_step(
        self, state: State, x_t: Any, train: bool = False, skip: bool = False
    ) -> tuple[Any, State]:
        """Computes one step of a stream.

        Args:
          state: the state that :meth:`init_state` or the previous step returned.
          x_t: the step, ``(B, C, *S)`` or a :class:`Frame` of it; a tuple for several streams.
          train: as in :meth:`forward`; statistics are those of the step.
          skip: whether, in a :class:`Sequential`, the modules after one with a temporal stride are
            skipped in steps in which that one emits nothing. This is faster, with the same results
            up to rounding. It is for one stream (of any batch size), since under ``vmap`` both
            branches are computed and one is selected. It has no effect in training, or if a
            collection of variables is mutable.

        Returns:
          The output :class:`Frame` and the next state.

        Raises:
          InputError: if the step does not fit the network, or the state does not fit the step.
        """
        require_state(state)
        require_static(train=train, skip=skip)
        # A branch that is not taken could neither create a variable nor draw a random number.
        signals = arriving(x_t, skip=bool(skip) and not train and self._changes_nothing)
        self._check(state, map_streams(spec_of, signals))
        signals, state = self.step(counted_together(state), signals, train=train)
        return map_streams(departing, signals), state

    @final
    def forward_steps(
        self,
        state: State,
        xs: Any,
        pad_end: bool = False,
        train: bool = False,
        at_once: bool = False,
    ) -> tuple[Any, State]:
        """Computes many steps of a stream: a ``lax.scan`` over :meth:`forward_step`.

        Args:
          state: the state that :meth:`init_state` or the previous steps returned.
          xs: the steps, ``(B, C, T, *S)`` or a :class:`Frame` of them with ``valid`` ``(T,)``.
          pad_end: whether ``timing.end`` fill steps follow, so that the last outputs of ``forward``
            are emitted too. The returned state is the one before these steps.
          train: as in :meth:`forward_step`.
          at_once: whether layers may compute the chunk as a whole, for instance as one convolution
            over their window and the chunk. This is faster, with the same results up to rounding,
            but takes memory of the size of the chunk. What cannot be computed this way is scanned:
            layers that define no better way, and the whole of a network that is being trained, is
            given Frames, or emits only when its inputs say so.

        Returns:
          A :class:`Frame` of value ``(B, C', T', *S')`` and valid ``(T',)`` with an entry for every
          input step (``T' = T``, or ``T + timing.end`` with ``pad_end``), and the next state.

        Raises:
          InputError: as in :meth:`forward_step`.
        """
        require_state(state)
        require_static(pad_end=pad_end, train=train, at_once=at_once)
        specs = map_streams(lambda x: without_time(spec_of(x)), xs)
        steps = length_of(xs)
        self._check(state, specs)
        if self.is_initializing():
            self.declare()

        first = flat_streams(xs)[0]
        state = varying_like(state, first.value if isinstance(first, Frame) else first)
        whole = not any(isinstance(each, Frame) for each in flat_streams(xs))
        if at_once and steps and whole and self.regular and not train:
            chunks = map_streams(lambda x: Chunk(jnp.asarray(x), last_step=steps - 1), xs)
            chunks, state = self.chunk(state, chunks)
            frames = map_streams(lambda each: spread(each, steps), chunks)
        else:
            xs = map_streams(by_steps, xs)
            frames, state = self._scan(state, xs, arriving_in_scan, train)
        end = self.timing.end
        if pad_end and end > 0:
            blank = map_streams(lambda spec: jnp.zeros(spec.shape, spec.dtype), specs)

            def past_the_end(past: Array) -> Any:
                return map_streams(lambda x: Signal(x, True, past, chunked=True), blank)

            numbers = jnp.arange(1, end + 1, dtype=jnp.int32)
            flushed, _ = self._scan(state, numbers, past_the_end, train)
            frames = map_streams(one_behind_another, frames, flushed)
        return frames, state

    @final
    def forward_stream(self, x: Any, train: bool = False) -> Any:
        """Runs a fresh stream over a clip and flushes it, with the same result as :meth:`forward`.

        Args:
          x: clip ``(B, C, T, *S)``, or a tuple of clips.
          train: as in :meth:`forward_step`.

        Returns:
          The outputs ``(B, C', T', *S')`` as a dense array, selected by static indices.

        Raises:
          InputError: as in :meth:`forward`.
        """
        require_clips("forward_stream", x)
        steps = length_of(x)
        self.require_length(steps)
        outputs = self.timing.outputs(steps)
        state = self.init_state(map_streams(lambda clip: without_time(spec_of(clip)), x))
        frames, _ = self.forward_steps(state, x, pad_end=True, train=train)
        return map_streams(
            lambda frame: frame.value[:, :, outputs.start : outputs.stop : outputs.step], frames
        )

    @final
    @nn.nowrap
    def init_state(self, x_t: Any, dtype: Any = None) -> State:
        """Returns the state of a fresh stream. Needs neither variables nor a bound module.

        Args:
          x_t: a step, as an array, a Frame or a ``jax.ShapeDtypeStruct`` (tuples of these for
            several streams); or its shape, with ``dtype``.
          dtype: the dtype, if ``x_t`` is a shape. Defaults to float32.

        Returns:
          A dict of arrays, keyed like the variables, with the batch as the leading axis of every
          leaf that is not a scalar.

        Raises:
          InputError: if such a step does not fit the network.
        """
        spec = step_spec(x_t, dtype)
        for stream in flat_streams(spec):
            if len(stream.shape) < 2:
                raise InputError(
                    f"a step has the axes (batch, channel, *space), got {stream.shape}"
                )
        self.output_spec(spec)
        return self.fresh_state(spec)

    def declare(self) -> None:
        """Creates the variables of this module and of those within it, without an input.

        ``net.init(key, method="declare")`` initialises a network whose input shape is unknown.
        """
        for child in self.children().values():
            child.declare()

    @nn.nowrap
    def _construct(self, **fields: Any) -> None:
        """Completes a hand-written ``__init__``: sets all fields, also Flax's, and initialises.

        Raises:
          TypeError: for an argument that is not a field.
        """
        declared = dataclasses.fields(self)
        for name in fields.keys() - {f.name for f in declared}:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {name!r}")
        defaults = {f.name: f.default for f in declared if f.default is not dataclasses.MISSING}
        for name, value in (defaults | fields).items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    @property
    def _changes_nothing(self) -> bool:
        """Whether no collection of variables is mutable."""
        return self.scope is None or is_filter_empty(self.scope.mutable)

    @nn.nowrap
    def require_length(self, steps: int) -> None:
        """Raises an InputError if a clip of ``steps`` steps is too short for an output."""
        timing = self.timing
        if timing.n_out(steps) < 1:
            raise InputError(
                f"a clip of {steps} steps is too short for {type(self).__name__}: its first output "
                f"needs {timing.delay + 1 - timing.end} (receptive field {timing.receptive_field}, "
                f"padding {timing.padding})"
            )

    @nn.nowrap
    def _check(self, state: State, spec: Any) -> None:
        wrong = misfits(jax.eval_shape(lambda: self.init_state(spec)), state)
        if wrong:
            steps = ", ".join(f"{x.dtype.name}{list(x.shape)}" for x in flat_streams(spec))
            raise InputError(
                f"the state does not fit {type(self).__name__} with steps of {steps}:\n  "
                + "\n  ".join(wrong)
                + "\nThe state must come from init_state of this network, with steps of this batch "
                "size, shape and dtype."
            )

    def _scan(
        self, state: State, xs: Any, signals_of: Callable[[Any], Any], train: bool
    ) -> tuple[Any, State]:
        def body(module: CoModule, state: State, x: Any) -> tuple[State, Any]:
            signals, state = module.step(counted_together(state), signals_of(x), train=train)
            return state, map_streams(departing_in_scan, signals)

        # A collection that is not mutable can be neither carried nor stacked.
        changed = [each for each in ("batch_stats", _SOWN) if self.is_mutable_collection(each)]
        scan = nn.scan(
            body,
            variable_axes={_SOWN: 0} if _SOWN in changed else {},
            variable_carry="batch_stats" if "batch_stats" in changed else False,
            variable_broadcast=nn.DenyList(changed),
            split_rngs={"params": False, nn.DenyList("params"): True},
        )
        state, frames = scan(self, state, xs)
        return map_streams(put_together, frames), state


class TimeLocal(CoModule):
    """A module without memory: a step is computed as a clip of one step.

    Subclasses implement ``clip``, for any number of steps, from one stream or several to one.

    Example::

        class Centred(co.TimeLocal):
            def clip(self, x, train=False):
                return x - x.mean(1, keepdims=True)

        net = co.Sequential(Centred(), co.Delay(1))
        x = jnp.arange(6.0).reshape(1, 2, 3)
        assert net.apply({}, x, method="forward_stream").tolist() == net.apply({}, x).tolist()

    Shapes:
      clip ``(B, C, T, *S)`` and step ``(B, C, *S)``, kept, unless ``output_spec`` is overridden.
    """

    def step(self, state: State, signal: Any, train: bool = False) -> tuple[Any, State]:
        return locally(lambda x: self.clip(x, train=train), signal), state

    def chunk(self, state: State, chunk: Any) -> tuple[Any, State]:
        return locally(self.clip, chunk), state


def advance(module: CoModule, state: State, flow: Any, train: bool) -> tuple[Any, State]:
    """Runs a module's step or chunk, depending on what flows: for modules that hold others."""
    if is_chunk(flow):
        return module.chunk(state, flow)
    return module.step(state, flow, train=train)


def walk(net: CoModule, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], CoModule]]:
    """Yields a module and all within it, each with its path of child names, in running order."""
    yield path, net
    for name, child in net.children().items():
        yield from walk(child, (*path, name))


def uses(net: CoModule) -> dict[int, list[tuple[str, ...]]]:
    """Returns the paths at which each module is used, by the module's ``id``."""
    found: dict[int, list[tuple[str, ...]]] = {}
    for path, module in walk(net):
        found.setdefault(id(module), []).append(path)
    return found


def declared(net: CoModule, x: Any = None) -> Any:
    """Returns the specs of a network's variables, without creating any.

    Args:
      net: the network.
      x: the spec of a step, which the variables of wrapped Flax modules depend on.

    Raises:
      TypeError: if they do, and it is not given.
    """
    if x is None or all(module.declares for _, module in walk(net)):
        return jax.eval_shape(lambda key: net.init(key, method="declare"), jax.random.key(0))
    steps = max(net.timing.delay + 1 - net.timing.end, 1)
    clip = map_streams(lambda spec: with_time(spec, steps), x)
    return jax.eval_shape(net.init, jax.random.key(0), clip)


def _identity(module: CoModule) -> tuple[Any, ...]:
    """Returns what two equal modules share: their fields, with arrays by their bits."""
    return tuple(
        (each.name, _hashable(getattr(module, each.name)))
        for each in dataclasses.fields(module)
        if each.compare
    )


def _hashable(value: Any) -> Any:
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    if not is_array or isinstance(value, jax.core.Tracer):
        return value
    array = np.asarray(value)
    return array.shape, array.dtype.name, array.tobytes()
