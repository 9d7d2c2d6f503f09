"""A choice between two modules."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from cojax.chunks import Chunk, is_chunk
from cojax.combinators.parallel import _Branches
from cojax.container import keep, key, named
from cojax.errors import InputError
from cojax.frames import Signal, Spec, State, select, spec_of, without_time
from cojax.layers.arguments import require_one_of
from cojax.layers.closure import Identity
from cojax.module import CoModule

Predicate = Callable[[CoModule, Any, bool], Any]


class Conditional(_Branches):
    """Runs one of two modules, chosen by a predicate.

    ``predicate(module, x, train)`` is called while tracing. If it returns a Python bool, only the
    chosen branch runs, at no other cost, and the state of the other is kept. If it returns a bool
    array (``()``, or ``(B,)`` for a choice for each row), both branches advance and the output is
    selected by the choice of the step that emits it; past the end of the stream, by the last
    choice.

    Source: ``continual.Conditional``. (There the predicate is not given ``train``, and a step
    returns the state of one branch only.)

    Example::

        def loud(module, x, train):
            return jnp.abs(x).max(1) > 1  # a choice for each row

        net = co.Conditional(loud, co.Multiply(0.5))
        x = jnp.array([[3.0], [0.5]])
        frame, _ = net.apply({}, net.init_state(x), x, method="forward_step")
        assert frame.value.tolist() == [[1.5], [0.5]]

    Attributes:
      predicate: called with this module, a step ``(B, C, *S)`` and ``train``. In ``forward``, a
        static predicate is given the clip.
      layers: the branches: "0" if the predicate is True, "1" if it is False. The second defaults to
        the identity, delayed like the first. Both must shrink a clip by the same number of steps.
      advance: "always"; or "taken": with a traced predicate, which must be a scalar, only the
        chosen branch advances. This saves the cost of the other, but a stream then no longer equals
        its clip.

    Shapes:
      a stream to a stream; both branches have outputs of the same shape.

    Raises:
      ValueError: at construction, if the branches do not share one temporal stride, or shrink a
        clip by different numbers of steps.
      InputError: if the branches have outputs of different shapes, or a predicate has a shape other
        than ``()`` and ``(B,)``.
    """

    predicate: Predicate = lambda module, x, train: True
    advance: str = "always"

    def __init__(
        self,
        predicate: Predicate,
        on_true: CoModule | None = None,
        on_false: CoModule | None = None,
        advance: str = "always",
        *,
        auto_delay: bool = True,
        layers: Mapping[str, CoModule] | None = None,
        order: tuple[str, ...] | None = None,
        **linen: Any,
    ):
        try:
            inspect.signature(predicate).bind(self, None, False)
        except TypeError as error:
            raise ValueError(
                "the predicate must be callable with (module, x, train), got "
                f"{predicate!r}: {error}"
            ) from error
        require_one_of("advance", advance, ("always", "taken"))
        branches: list[Any] = []
        if layers is None:  # Otherwise Flax rebuilds the module from its fields.
            branches = [on_true, Identity() if on_false is None else on_false]
        self._construct(
            **named(branches, layers, order),
            predicate=predicate,
            advance=advance,
            auto_delay=auto_delay,
            **linen,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        shrinks = {
            name: child.timing.delay - child.timing.end for name, child in self.children().items()
        }
        if max(shrinks.values()) - min(shrinks.values()) >= self.timing.stride:
            raise ValueError(
                f"the branches of a Conditional must shrink a clip alike, but do so by {shrinks} "
                "steps; pad them, or crop one with Delay(auto_shrink=...)"
            )

    @property
    def regular(self) -> bool:
        return self.advance == "always" and super().regular

    def output_spec(self, x: Any) -> Any:
        specs = [self.child_spec(name, x) for name in self.order]
        if specs[0] != specs[1]:
            raise InputError(f"the branches have different outputs: {specs[0]} and {specs[1]}")
        return specs[0]

    @nn.nowrap
    def _decision_spec(self, x: Spec) -> Spec | None:
        """Returns the spec of a traced decision on steps of this spec, or None if it is static."""
        decisions: list[Any] = []

        def decide(x: Array) -> None:
            decisions.extend(self._decide(x, train) for train in (False, True))

        jax.eval_shape(decide, x)
        shapes = [choice.shape for choice in decisions if not isinstance(choice, bool)]
        return Spec(shapes[0], jnp.bool_) if shapes else None

    @nn.nowrap
    def _decide(self, x: Any, train: bool) -> bool | Array:
        choice = self.predicate(self, x, train)
        if not isinstance(choice, jax.Array):
            return bool(choice)
        if choice.shape not in ((), x.shape[:1]) or choice.dtype != jnp.bool_:
            raise InputError(
                f"the predicate must return a bool, of shape () or ({x.shape[0]},), got "
                f"{choice.dtype} {choice.shape}"
            )
        if choice.ndim and self.advance == "taken":
            raise InputError("advance='taken' needs one choice for the batch, got one a row")
        return choice

    def clip(self, x: Any, train: bool = False) -> Any:
        lengths = {name: c.timing.n_out(x.shape[2]) for name, c in self.children().items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"for {x.shape[2]} steps the branches give clips of {lengths} steps")
        if self._decision_spec(without_time(spec_of(x))) is None:
            return self.child_clip("0" if self._decide(x, train) else "1", x, train)
        outputs = [self.child_clip(name, x, train) for name in self.order]
        choices = jax.vmap(lambda x: jnp.asarray(self._decide(x, train)), in_axes=2)(x)
        leaving = jnp.minimum(jnp.array(self.timing.outputs(x.shape[2])), x.shape[2] - 1)
        choices = choices[leaving].reshape(len(leaving), -1).T
        return jnp.where(choices.reshape(-1, 1, len(leaving), *(1,) * (x.ndim - 3)), *outputs)

    def fresh_state(self, x: Any) -> State:
        states = {name: self.child_state(name, x) for name in self.order}
        state = keep(states, self._line.fresh(x))
        decision = self._decision_spec(x)
        if decision is not None:
            state["choice"] = jnp.zeros(decision.shape, decision.dtype)
        return state

    @nn.nowrap
    def flow_through(self, state: State, flow: Any, train: bool) -> tuple[Any, State]:
        line, shifts = self._line, self.shifts()
        late = line.push(state.get("late", {}), flow)
        held = {name: late.held(shifts[name]) for name in self.order}
        branches = {name: state.get(key(name), {}) for name in self.order}

        frame = flow.clean()
        choice = self._decide(frame[:, :, 0] if is_chunk(flow) else frame, train)
        if isinstance(choice, bool):
            taken = "0" if choice else "1"
            output, branches[taken] = self._branch_step(taken, branches, held, train)
        else:
            choice = select(flow.real, choice, state["choice"])
            if self.advance == "taken":
                output, branches = self._step_taken(choice, branches, held, train)
            else:
                output, branches = self._step_both(choice, branches, held, train)
        after = keep(branches, late.after)
        if "choice" in state:
            after["choice"] = state["choice"] if isinstance(choice, bool) else choice
        return output, after

    def chunk(self, state: State, chunk: Chunk) -> tuple[Chunk, State]:
        if "choice" in state:  # The choice is made anew in every step.
            return CoModule.chunk(self, state, chunk)
        return super().chunk(state, chunk)

    @nn.nowrap
    def _branch_step(
        self, name: str, states: State, held: Mapping[str, Any], train: bool
    ) -> tuple[Any, State]:
        return self.child_step(name, keep(states), held[name], train)

    @nn.nowrap
    def _step_both(
        self, choice: Array, states: State, held: Mapping[str, Signal], train: bool
    ) -> tuple[Signal, State]:
        outputs, after = {}, {}
        for name in self.order:
            outputs[name], after[name] = self._branch_step(name, states, held, train)
        first, second = (outputs[name] for name in self.order)
        wide = choice.reshape(-1, *(1,) * (first.value.ndim - 1))
        return first.becomes(jnp.where(wide, first.clean(), second.clean())), after

    @nn.nowrap
    def _step_taken(
        self, choice: Array, states: State, held: Mapping[str, Signal], train: bool
    ) -> tuple[Signal, State]:
        def take(name: str) -> Callable[..., Any]:
            def branch(module: Conditional, states: State) -> Any:
                output, after = module._branch_step(name, states, held, train)
                frame = (output.value, jnp.asarray(output.valid), jnp.asarray(output.past))
                return frame, {**states, name: after}

            return branch

        (value, valid, past), after = nn.cond(choice, take("0"), take("1"), self, states)
        signal = held[self.order[0]]
        past = 0 if signal.always_real else past
        output = dataclasses.replace(signal, value=value, valid=valid, past=past, tidy=False)
        return output, after
