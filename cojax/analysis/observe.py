"""Observes a network while it runs on shapes alone.

The network's own code determines what every module within receives, returns and keeps, and when: it
runs once, abstractly, and every call of a module's ``step`` (or ``clip``) is recorded. Signals
carry the timing from the network's input to where they are. So no container, not even your own,
needs a separate description; nothing is computed or compiled, and no variables are needed.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from flax.linen.module import InterceptorContext
from jax import Array

from cojax.frames import Signal, flat_streams, map_streams, spec_of, without_time
from cojax.module import CoModule, declared
from cojax.timing import Timing, in_parallel, in_sequence

_AT_THE_INPUT = Timing()


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a module during a run of a network.

    Attributes:
      module: the module.
      path: its torch path in the network.
      place: the path of its variables.
      x, y: the specs of its input and output. None if the module did not run.
      is_clip: whether these are clips rather than steps.
      state: the specs of its state, including those of the modules within.
      before, after: the timing from the network's input to the module's input, and to its output.
      sources: for each input stream, the call that made it; None for the network's input.
      within: the calls of the modules within, in the order in which they ran.
      hands_on: whether its output was made by other modules and only passed through.
    """

    module: CoModule
    path: tuple[str, ...]
    place: tuple[str, ...]
    x: Any = None
    y: Any = None
    is_clip: bool = False
    state: Any = dataclasses.field(default_factory=dict)
    before: Timing = _AT_THE_INPUT
    after: Timing = _AT_THE_INPUT
    sources: tuple["Call | None", ...] = ()
    within: list["Call"] = dataclasses.field(default_factory=list)
    hands_on: bool = False

    @property
    def ran(self) -> bool:
        return self.y is not None

    @property
    def kind(self) -> str:
        """The name of the module's type."""
        return type(self.module).__name__

    def walk(self) -> Iterator["Call"]:
        """Yields this call and all calls within it, each before those within it."""
        yield self
        for call in self.within:
            yield from call.walk()


def observe_step(net: CoModule, x: Any) -> Call:
    """Runs one step of the network on inputs of this spec, and records the calls.

    Raises:
      InputError: if the step does not fit the network.
    """
    state = jax.eval_shape(lambda: net.init_state(x))
    observer = _Observer(steps=True)

    def run(variables: Any, state: Any, x: Any) -> None:
        with nn.intercept_methods(observer):
            net.apply(variables, state, map_streams(_Observed, x), method="step")

    jax.eval_shape(run, declared(net, x), state, x)
    return observer.root


def observe_clip(net: CoModule, x: Any) -> Call:
    """Runs ``forward`` on a clip of this spec, and records the calls, but no timings.

    Raises:
      InputError: if the clip does not fit the network, or is too short for it.
    """
    observer = _Observer(steps=False)
    with nn.intercept_methods(observer):
        jax.eval_shape(net.apply, declared(net, map_streams(without_time, x)), x)
    return observer.root


@dataclasses.dataclass(frozen=True)
class _Observed(Signal):
    """A signal that knows its origin.

    Attributes:
      timing: when its frames are valid, in input steps of the network.
      source: the call that made it; None at the network's input.
    """

    timing: Timing = _AT_THE_INPUT
    source: Call | None = None

    def leaves(self, value: Array, emits: bool | Array, timing: Timing) -> Signal:
        later = dataclasses.replace(self, timing=in_sequence([self.timing, timing]))
        return Signal.leaves(later, value, emits, timing)


class _Observer:
    """Intercepts the methods of linen modules, and records the calls of steps and clips.

    Attributes:
      root: the call of the network.
      steps: whether the network runs on steps.
    """

    root: Call

    def __init__(self, steps: bool) -> None:
        self.steps = steps
        self.running: list[Call] = []
        # Every signal that was the input or output of a module, by identity.
        self.seen: dict[int, _Observed] = {}

    def __call__(
        self, run: Callable[..., Any], args: Any, kwargs: Any, context: InterceptorContext
    ) -> Any:
        module, method = context.module, context.method_name
        if not isinstance(module, CoModule) or method not in ("step", "clip"):
            return run(*args, **kwargs)
        call = self._entered(module)
        if call is None:
            return run(*args, **kwargs)
        self.running.append(call)
        output = (self._step if method == "step" else self._clip)(call, run, *args, **kwargs)
        self.running.pop()
        self._note_idle(call)
        return output

    def _entered(self, module: CoModule) -> Call | None:
        """The new call, or None if it is part of the one that is running.

        A running module calls methods of its own: those of its superclass, or the ``clip`` that its
        ``step`` consists of. Modules that it does not name among its children are part of it, too.
        """
        place = _place(module)
        if not self.running:
            self.root = Call(module, (), place)
            return self.root
        parent = self.running[-1]
        children = parent.module.children()
        names = [name for name, child in children.items() if _place(child) == place]
        if parent.place == place or not names:
            return None
        # A module that is used in several places has the name, and the variables, of the first.
        called = {call.path[-1] for call in parent.within}
        name = next((name for name in names if name not in called), names[0])
        call = Call(module, (*parent.path, name), place)
        parent.within.append(call)
        return call

    def _step(
        self, call: Call, run: Callable[..., Any], state: Any, signal: Any, train: bool = False
    ) -> Any:
        arriving = flat_streams(signal)
        if not all(isinstance(each, _Observed) for each in arriving):
            raise TypeError(
                f"{'.'.join(call.path)} ({call.kind}) was given a Signal made anew, so when it "
                "comes is unknown; derive it from another, by its becomes or leaves"
            )
        self.seen.update((id(each), each) for each in arriving)
        call.x, call.state = map_streams(spec_of, signal), jax.tree.map(spec_of, state)
        call.before = in_parallel({str(i): each.timing for i, each in enumerate(arriving)})
        call.after = in_sequence([call.before, call.module.timing])
        call.sources = tuple(each.source for each in arriving)

        output, state = run(state, signal, train=train)
        call.y = map_streams(spec_of, output)
        call.hands_on = all(id(each) in self.seen for each in flat_streams(output))
        return map_streams(functools.partial(self._leaving, call), output), state

    def _leaving(self, call: Call, signal: Signal) -> Signal:
        if id(signal) in self.seen:
            return signal
        fields = {f.name: getattr(signal, f.name) for f in dataclasses.fields(Signal)}
        made = _Observed(**fields, timing=call.after, source=call)
        self.seen[id(made)] = made
        return made

    def _clip(self, call: Call, run: Callable[..., Any], x: Any, train: bool = False) -> Any:
        parent = self.running[-2] if len(self.running) > 1 else call
        call.before, call.sources = parent.before, parent.sources
        call.after = in_sequence([call.before, call.module.timing])
        y = run(x, train=train)
        # While stepping, a module without memory runs its step as a clip.
        call.is_clip = not self.steps or any(
            spec_of(each).shape[2:3] != (1,) for each in flat_streams((x, y))
        )
        spec = spec_of if call.is_clip else lambda clip: without_time(spec_of(clip))
        call.x, call.y = map_streams(spec, x), map_streams(spec, y)
        return y

    def _note_idle(self, call: Call) -> None:
        """Records the modules within that did not run."""
        called = {inner.path[-1] for inner in call.within}
        for name, child in call.module.children().items():
            if name not in called:
                idle = Call(child, (*call.path, name), _place(child))
                idle.state = call.state.get(child.name, {})
                call.within.append(idle)


def _place(module: CoModule) -> tuple[str, ...]:
    """The path of a module's variables while its network runs."""
    assert module.scope is not None
    return module.scope.path
