"""Converts modules of PyTorch, Flax and ``continual`` to networks of cojax, with their weights.

Each module is converted by a builder, a function of the module. It is looked up by the module's
exact class (or, for a function among Flax layers, by the function itself), because a subclass may
compute something else. The builders for a library's classes are in a file of their own, which is
imported when one of its modules is converted.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.core import unfreeze

from cojax.interop.names import put
from cojax.interop.torch import load_torch
from cojax.layers.closure import Identity
from cojax.layers.stepping import ForwardStepping
from cojax.module import CoModule, declared, walk

Builder = Callable[..., Any]
Variables = dict[str, Any]

_registered: dict[Hashable, Builder] = {}


class ConversionError(ValueError):
    """A module cannot be converted. The message gives the path of every part that cannot be."""


def continual(
    module: Any, variables: Mapping[str, Any] | None = None, **options: Any
) -> tuple[CoModule, Variables]:
    """Converts a module of PyTorch, Flax or ``continual``, with its weights and statistics.

    On clips ``(B, C, T, *S)`` the network computes what the module computes, and it can also run
    step by step. Parameters keep their dtypes. It does not matter whether the module is in training
    mode: the network's mode is set by ``train=``. The names of a torch module are kept as well, so
    :func:`to_torch` gives back its ``state_dict``. Parameters that parts of a module share become
    separate copies. Zeros padded before a convolution in a sequence become its own padding.

    A Flax module takes clips ``(B, T, *S, C)`` where the network takes ``(B, C, T, *S)``. Functions
    among its layers (``nn.relu``, ``functools.partial(nn.max_pool, ...)``) are converted with it.

    Modules without a known conversion (see :func:`register`) are rejected, and so are modules that
    need what a stream does not have, such as a last step to begin with. Layers that can look across
    time only in ``forward``, such as ``torch.nn.GroupNorm``, are converted, but refuse to step.

    Example::

        module = torch.nn.Sequential(
            torch.nn.Conv1d(6, 16, 3), torch.nn.ReLU(), torch.nn.Linear(16, 4)
        )
        net, variables = co.continual(module, channel_dim=1)
        y = net.apply(variables, jnp.ones((1, 6, 20)))

    Source: ``continual.continual``.

    Args:
      module: the module.
      variables: the variables of a Flax module. (Modules of other libraries hold their own.)
      **options: arguments of cojax layers that the module does not determine. Each is one value for
        all layers that take it, or a dict of values by path, as in ``kernel_size={"2.pool": 8}``:

        * ``channel_dim``: the axis of the clip along which linear maps, and layer norms over one
          axis, run. In torch this is the last axis; in clips ``(B, C, T)`` that is time, along
          which they are rejected.
        * ``kernel_size``: the number of steps that adaptive pools pool over while stepping, counted
          in their own inputs: of those that a stride before them leaves.
        * ``sequence_len``: the number of tokens that attend to each other in attention and
          encoders.
        * ``per_step``: whether group, instance and layer norms compute the statistics of each step
          separately, in every mode. They can then step, but differ from the module's in
          ``forward``.
        * any argument that your own builders take.

    Returns:
      The network and its variables.

    Raises:
      ConversionError: if the module cannot be converted. The message names every part that cannot.
      TypeError: if ``module`` is a class, or ``variables`` are given for a module that has its own.
    """
    if isinstance(module, type) or not callable(module):
        hint = f"; make one of this class: {module.__name__}(...)" if callable(module) else ""
        raise TypeError(f"continual takes a module, got {module!r}{hint}")
    if _is_torch(module) and variables is not None:
        raise TypeError(f"{type(module).__name__} holds its own variables; give none")
    # Paths are written as the module's library writes them.
    conversion = _Conversion(options, "." if _is_torch(module) else "/")
    given = nn.meta.unbox(unfreeze(dict(variables or {})))
    net, made = conversion.convert(module, given, ())
    problems = conversion.problems or [*conversion.unused(), *_misfits(net, made)]
    if problems:
        raise ConversionError(f"{_called(module)} cannot be converted:\n  " + "\n  ".join(problems))
    return net, {"params": {}, **made}


def register(kind: Any, builder: Any) -> None:
    """Registers how :func:`continual` converts modules of a class, also within other modules.

    The registration holds for the class itself, not for its subclasses, and takes precedence over
    built-in conversions.

    Example::

        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = torch.nn.Conv1d(8, 8, 3, padding=1)

            def forward(self, x):
                return torch.relu(x + self.conv(x))

        def convert_block(block, *, convert):
            return co.Sequential(co.Residual(convert(block.conv)), co.ReLU())

        co.register(Block, convert_block)

    Args:
      kind: a class of torch or Flax modules; or a function that is used among Flax layers.
      builder: a function of the module that returns either the network, whose variables are then
        those of the module, matched by name; or the network and its variables. It is passed the
        keyword-only arguments that it declares: ``convert`` converts a module within this one (a
        Flax module is passed together with its name in the variables), and the variables of the
        result go wherever the builder puts it; ``variables`` are those of a Flax module; all others
        are options of :func:`continual`. Alternatively, a class with such a function
        ``build_from``; or a class whose conversion is also right for this one, such as
        ``torch.nn.Conv3d`` for a subclass of it. For a module that a ``continual.Lambda`` gives
        single steps, the network is to compute of a clip what the module computes of its steps.

    Raises:
      TypeError: if ``builder`` is anything else.
    """
    builder = getattr(builder, "build_from", builder)
    if not callable(builder) or issubclass(
        builder if isinstance(builder, type) else type(builder), CoModule
    ):
        raise TypeError(
            f"a builder is a function of the module, or the class that it is converted like; got "
            f"{builder!r}"
        )
    _registered[kind] = builder


class _Conversion:
    """One conversion: its options, and the problems found so far."""

    def __init__(self, options: Mapping[str, Any], separator: str):
        self.options = options
        self.separator = separator
        self.problems: list[str] = []
        self.used: set[tuple[str, str | None]] = set()

    def convert(
        self, module: Any, variables: Variables, path: tuple[str, ...], each_step: bool = False
    ) -> tuple[CoModule, Variables]:
        """The network and its variables. After a problem, which is recorded, a placeholder.

        ``each_step`` is whether the module is given each step of a clip, rather than the clip.
        """
        before = len(self.problems)
        try:
            net, made = self._made(module, variables, path, each_step)
        except Exception as error:
            # An error that follows from a part that failed says nothing new.
            if len(self.problems) == before:
                if not isinstance(error, ValueError):
                    raise
                where = self.separator.join(path) or "the module itself"
                self.problems.append(f"{where} ({_called(module)}): {error}")
        if len(self.problems) > before:
            return Identity(), {}
        # A copy, so that the network made from this part can be told from those of other parts.
        return net.clone(), made

    def unused(self) -> Iterator[str]:
        """A message for each option that no builder took."""
        for name, value in self.options.items():
            for path in value if isinstance(value, Mapping) else [None]:
                if (name, path) not in self.used:
                    where = f" at {path!r}" if path is not None else ""
                    yield f"nothing{where} takes {name}"

    def _made(
        self, module: Any, variables: Variables, path: tuple[str, ...], each_step: bool
    ) -> tuple[CoModule, Variables]:
        if isinstance(module, CoModule):
            return module, variables
        parts: list[_Part] = []

        def convert(child: Any, name: str | None = None, each_step: bool = each_step) -> CoModule:
            name = _name_within(module, child) if name is None else name
            net, made = self.convert(child, _within(variables, name), (*path, name), each_step)
            parts.append(_Part(name, child, net, made))
            return net

        builder = _builder_of(module, each_step)
        provided = {"convert": convert, "variables": variables}
        arguments = {
            name: provided[name] if name in provided else self._option(parameter, path)
            for name, parameter in inspect.signature(builder).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        made = builder(module, **arguments)
        net, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(net, CoModule):
            raise TypeError(
                f"the builder of {_called(module)} must return a CoModule, or one and its "
                f"variables, got {made!r}"
            )
        if own is not None:
            return net, own
        if parts:
            _require_all(module, variables, parts)
            return net, _gathered(net, parts)
        if _is_torch(module):
            return net, load_torch(net, module.state_dict())
        return net, variables

    def _option(self, parameter: inspect.Parameter, path: tuple[str, ...]) -> Any:
        name, where = parameter.name, self.separator.join(path)
        given = self.options.get(name)
        if isinstance(given, Mapping) and where in given:
            self.used.add((name, where))
            return given[where]
        if name in self.options and not isinstance(given, Mapping):
            self.used.add((name, None))
            return given
        if parameter.default is inspect.Parameter.empty:
            raise ValueError(
                f"needs {name}, which the module does not say: co.continual(module, {name}=...), "
                f"or {name}={{{where!r}: ...}} for this part alone"
            )
        return parameter.default


class _Part(NamedTuple):
    """A module within another: its name there, the module, and what it was converted to."""

    name: str
    module: Any
    net: CoModule
    variables: Variables


def _builder_of(module: Any, each_step: bool) -> Builder:
    """The builder for a module, which is given each step of a clip, or the clip.

    Raises:
      ValueError: if there is none.
    """
    kind = _kind(module)
    builder = _registered.get(kind)
    if builder is not None and not isinstance(builder, type):
        return builder
    known: Mapping[Hashable, Builder]
    if _is_torch(module):
        from cojax.interop import from_torch

        known = from_torch.builders(each_step)
        from_torch.require_plain(module)
    else:
        from cojax.interop import from_flax

        known = from_flax.BUILDERS
    if builder is None and kind not in known:
        raise ValueError((_unknown_of_steps if each_step else _unknown)(module, known))
    if builder is not None and builder not in known:
        raise ValueError(f"is registered to be converted like {builder.__name__}, and that is not")
    return known[kind if builder is None else builder]


def _unknown(module: Any, known: Mapping[Hashable, Builder]) -> str:
    kind, name = _kind(module), _called(module)
    if not name.isidentifier():
        name = "it"
    for base in kind.__mro__[1:] if isinstance(kind, type) else ():
        if base in known:
            return (
                f"is a {base.__name__} of its own and may compute something else; if it does not, "
                f"co.register({name}, {base.__name__}), else co.register({name}, builder)"
            )
    if _is_torch(module):
        return f"no conversion is known; give one with co.register({name}, builder)"
    return (
        f"no conversion is known; give one with co.register({name}, builder), which may be "
        "lambda part: co.forward_stepping(part, channels_last=True) where it is local in time"
    )


def _unknown_of_steps(module: Any, known: Mapping[Hashable, Builder]) -> str:
    from cojax.interop import from_torch

    if _kind(module) not in from_torch.builders():
        return _unknown(module, known)
    return (
        "is given single steps, where cojax knows it for clips: instead of the Lambda, take its "
        "counterpart for clips, such as a Conv3d with a kernel of 1 in time for a Conv2d, or "
        f"co.register({_called(module)}, builder)"
    )


def _kind(module: Any) -> Any:
    """The class or function for which a builder of this module is registered."""
    if isinstance(module, functools.partial):
        return _kind(module.func)
    return type(module) if isinstance(module, nn.Module) or _is_torch(module) else module


def _called(module: Any) -> str:
    kind = _kind(module)
    return getattr(kind, "__name__", repr(kind))


def _is_torch(module: Any) -> bool:
    torch = sys.modules.get("torch")  # Until it is imported, there are no modules of it.
    return torch is not None and isinstance(module, torch.nn.Module)


def _name_within(module: Any, child: Any) -> str:
    names = {id(part): name for name, part in module.named_modules()} if _is_torch(module) else {}
    return names.get(id(child), _called(child))


def _within(variables: Variables, name: str) -> Variables:
    return {kind: tree[name] for kind, tree in variables.items() if name in tree}


def _require_all(module: Any, variables: Variables, parts: list[_Part]) -> None:
    """Raises a ValueError if a module has tensors that none of its parts has."""
    if _is_torch(module):
        from cojax.interop.from_torch import tensors

        modules = [part.module for part in parts if _is_torch(part.module)]
        theirs = {id(tensor) for part in modules for tensor in tensors(part).values()}
        own = [name for name, tensor in tensors(module).items() if id(tensor) not in theirs]
    else:
        names = {part.name for part in parts}
        own = sorted({name for tree in variables.values() for name in tree} - names)
    if own:
        raise ValueError(
            f"has variables beside those of its parts: {', '.join(own)}; where it needs them, its "
            "builder returns the network and its variables"
        )


def _gathered(net: CoModule, parts: list[_Part]) -> Variables:
    """The variables of a network, from those of its parts where the network has these."""
    # A module that is used in several places has its variables in one of them, as bound.
    bound = [module for _, module in walk(net.bind({}))]
    homes = {id(module): at.path for (_, module), at in zip(walk(net), bound, strict=True)}
    gathered: Variables = {}
    for part in parts:
        for collection, tree in part.variables.items():
            if not jax.tree.leaves(tree):
                continue
            if id(part.net) not in homes:
                raise ValueError(f"what was converted of {part.name} is not in the network built")
            put(gathered, (collection, *homes[id(part.net)]), tree)
    return gathered


def _misfits(net: CoModule, variables: Variables) -> Iterator[str]:
    """A message for each variable that is not as the network declares it."""
    if any(isinstance(module, ForwardStepping) for _, module in walk(net)):
        return  # Its variables depend on a clip.
    expected, given = _shapes(declared(net)), _shapes(variables)
    for path in sorted(expected.keys() | given.keys()):
        if path not in given:
            yield f"the variable {path}, of shape {expected[path]}, is missing"
        elif path not in expected:
            yield f"the variable {path}, of shape {given[path]}, is none of the network's"
        elif expected[path] != given[path]:
            yield f"the variable {path} has shape {given[path]}, expected {expected[path]}"


def _shapes(variables: Variables) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jax.numpy.shape(leaf)
        for path, leaf in leaves
    }
