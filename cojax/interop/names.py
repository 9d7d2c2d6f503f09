"""Locates a network's variables in a torch ``state_dict``."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cojax.combinators.conditional import Conditional
from cojax.combinators.parallel import BroadcastReduce, Parallel
from cojax.combinators.transformer import TransformerEncoder, TransformerEncoderLayer
from cojax.container import key
from cojax.layers.activation import PReLU
from cojax.layers.attention import (
    RetroactiveMultiheadAttention,
    WindowMultiheadAttention,
)
from cojax.layers.conv import _Conv
from cojax.layers.linear import Linear
from cojax.layers.multihead import MultiheadAttention
from cojax.layers.norm import GroupNorm, LayerNorm, _RunningNorm
from cojax.layers.positional import RecyclingPositionalEncoding
from cojax.layers.recurrent import _Recurrent
from cojax.layers.stepping import ForwardStepping
from cojax.module import CoModule, declared, uses, walk

Convert = Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


class Leaf(NamedTuple):
    """The name and layout in torch of one variable of a layer.

    If torch packs several variables into one tensor, they are its ``parts``, along its first axis.
    """

    collection: str
    name: str
    torch_name: str
    from_torch: Convert = _same
    to_torch: Convert = _same
    parts: tuple["Leaf", ...] = ()


_OUT_IN_FIRST = Leaf(
    "params",
    "kernel",
    "weight",
    lambda x: np.moveaxis(x, (0, 1), (-1, -2)),
    lambda x: np.moveaxis(x, (-1, -2), (0, 1)),
)
_BIAS = Leaf("params", "bias", "bias")
_SCALE = Leaf("params", "scale", "weight")


def _recurrent(module: _Recurrent) -> tuple[Leaf, ...]:
    """The variables of each layer in turn."""
    return tuple(
        like._replace(name=f"{like.name}_{part}_l{k}", torch_name=f"{like.torch_name}_{part}_l{k}")
        for k in range(module.num_layers)
        for like, part in (
            (_OUT_IN_FIRST, "ih"),
            (_OUT_IN_FIRST, "hh"),
            (_BIAS, "ih"),
            (_BIAS, "hh"),
            (_OUT_IN_FIRST, "hr"),
        )
    )


def _attention(module: MultiheadAttention) -> tuple[Leaf, ...]:
    """Torch packs the projections of queries, keys and values into one tensor where it can."""
    projections: tuple[Leaf, ...] = (
        _OUT_IN_FIRST._replace(name="q_proj_kernel", torch_name="q_proj_weight"),
        Leaf("params", "k_proj_weight", "k_proj_weight"),
        Leaf("params", "v_proj_weight", "v_proj_weight"),
    )
    if module.packed:
        projections = (Leaf("params", "in_proj", "in_proj_weight", parts=projections),)
    token: dict[str, Any] = {"from_torch": np.ravel, "to_torch": lambda x: x.reshape(1, 1, -1)}
    return (
        *projections,
        _BIAS._replace(name="in_proj_bias", torch_name="in_proj_bias"),
        *(Leaf("params", name, name, **token) for name in ("bias_k", "bias_v")),
        _OUT_IN_FIRST._replace(name="out_proj_kernel", torch_name="out_proj.weight"),
        _BIAS._replace(name="out_proj_bias", torch_name="out_proj.bias"),
    )


RUNNING_NORM = (
    _SCALE,
    _BIAS,
    Leaf("batch_stats", "mean", "running_mean"),
    Leaf("batch_stats", "var", "running_var"),
    Leaf(
        "batch_stats",
        "num_batches_tracked",
        "num_batches_tracked",
        to_torch=lambda x: x.astype(np.int64),
    ),
)

# The variables of a layer, in torch's order; a function of the module where they depend on it.
Leaves = tuple[Leaf, ...] | Callable[[Any], tuple[Leaf, ...]]

# Those of the layers that have any, and of their subclasses.
_LEAVES: dict[type[CoModule], Leaves] = {
    _Conv: (_OUT_IN_FIRST, _BIAS),
    Linear: (_OUT_IN_FIRST, _BIAS),
    _Recurrent: _recurrent,
    MultiheadAttention: _attention,
    RecyclingPositionalEncoding: (
        Leaf("params", "embedding", "pe.weight"),
        Leaf("constants", "pattern", "pe.pattern"),
    ),
    PReLU: (Leaf("params", "negative_slope", "weight"),),
    GroupNorm: (_SCALE, _BIAS),
    LayerNorm: (_SCALE, _BIAS),
    _RunningNorm: RUNNING_NORM,
}


def name_variables(kind: type[CoModule], leaves: Leaves) -> None:
    """Registers the torch names of a module's own variables, in torch's order.

    They replace those of a base class. For modules defined outside the library's layers. The
    modules within them need no registration: ``children`` names them.
    """
    _LEAVES[kind] = leaves


class Entry(NamedTuple):
    """One variable of a network.

    Attributes:
      path: its path in the variables, collection first.
      spec: its shape and dtype.
      name: its torch name, made of the modules' own names.
      delayed_name: its name in ``continual``, which wraps a branch that it delays.
      leaf: its name and layout in torch.

    If it has parts, these replace the last name of the path, and the spec is that of the tensor
    into which torch packs them.
    """

    path: tuple[str, ...]
    spec: jax.ShapeDtypeStruct
    name: str
    delayed_name: str
    leaf: Leaf

    @property
    def paths(self) -> list[tuple[str, ...]]:
        """The paths of its parts, or its own if it has none."""
        return [(*self.path[:-1], part.name) for part in self.leaf.parts] or [self.path]

    def of(self, variables: Mapping[str, Any]) -> Any:
        """Its value in these variables, or None if there is none."""
        values = [at(variables, path) for path in self.paths]
        if any(value is None for value in values):
            return None
        if not self.leaf.parts:
            return np.asarray(values[0])
        pairs = zip(self.leaf.parts, values, strict=True)
        return np.concatenate([part.to_torch(np.asarray(value)) for part, value in pairs])

    def put(self, variables: dict[str, Any], value: np.ndarray) -> None:
        """Sets its value in these variables."""
        values = [value]
        if parts := self.leaf.parts:
            pairs = zip(parts, np.split(value, len(parts)), strict=True)
            values = [part.from_torch(piece) for part, piece in pairs]
        for path, own in zip(self.paths, values, strict=True):
            put(variables, path, jnp.asarray(own))

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return _torch_shape(self.leaf, self.spec)


def entries(net: CoModule) -> list[Entry]:
    """Every variable of the network, in torch's order.

    Raises:
      TypeError: for a layer whose variables have no known names in torch.
    """
    for names, module in walk(net):
        if isinstance(module, ForwardStepping):
            where = "/".join(map(key, names)) or "the network"
            raise TypeError(
                f"{where} is a Flax module, {type(module.module).__name__}: its variables have no "
                "known names in torch"
            )
    specs = declared(net)
    found = list(_entries(net, specs, uses(net), (), ()))
    known = {path for entry in found for path in entry.paths}
    for path, _ in jax.tree_util.tree_flatten_with_path(specs)[0]:
        keys = tuple(part.key for part in path)
        if keys not in known:
            raise TypeError(
                f"the variable {'/'.join(keys)} has no known name in torch: only layers of cojax "
                "have; exchange those of your own layers as arrays"
            )
    return found


def _leaves_of(module: CoModule) -> tuple[Leaf, ...]:
    """The variables registered for the first of the module's classes that has any."""
    for kind in type(module).__mro__:
        if kind in _LEAVES:
            leaves = _LEAVES[kind]
            return leaves(module) if callable(leaves) else leaves
    return ()


def _entries(
    module: CoModule,
    specs: Any,
    places: Mapping[int, list[tuple[str, ...]]],
    names: tuple[str, ...],
    delayed: tuple[str, ...],
) -> Iterator[Entry]:
    # A module that is used in several places has its variables in one of them.
    paths = [tuple(map(key, place)) for place in places[id(module)]]
    for path, leaf in itertools.product(paths, _leaves_of(module)):
        place = (leaf.collection, *path)
        own = [at(specs, (*place, part.name)) for part in leaf.parts or (leaf,)]
        if all(spec is not None for spec in own):
            spec = _packed(own, leaf.parts) if leaf.parts else own[0]
            name, long = (".".join((*n, leaf.torch_name)) for n in (names, delayed))
            yield Entry((*place, leaf.name), spec, name, long, leaf)
    for name, child in module.children().items():
        wrapped = _wrapped(module, name)
        yield from _entries(child, specs, places, (*names, name), (*delayed, *wrapped))


def _wrapped(module: CoModule, name: str) -> tuple[str, ...]:
    """The path of a child in ``continual``, which may wrap it, in a delay or otherwise."""
    if isinstance(module, Parallel | BroadcastReduce) and module.shifts()[name]:
        return (name, "0")
    if isinstance(module, Conditional) and module.shifts()[name]:
        return (name, "1")
    if isinstance(module, TransformerEncoderLayer):
        return _wrapped_in_encoder(module.layers["self_attn"], name)
    if isinstance(module, TransformerEncoder) and name == "norm":
        return (name, "fn")
    return (name,)


def _wrapped_in_encoder(attention: CoModule, name: str) -> tuple[str, ...]:
    """The path of a child of an encoder layer, which ``continual`` builds from containers."""
    norm = name.startswith("norm")
    if name == "self_attn":
        path: tuple[str, ...] = ("0", name)
    elif isinstance(attention, RetroactiveMultiheadAttention):
        path = ("1", "fn", name) if norm else ("1", "fn", "_ff_block", "fn", name)
    else:
        path = ("1", name, "fn") if norm else ("1", "_ff_block", "1", name)
    return ("fn", *path) if isinstance(attention, WindowMultiheadAttention) else path


def _torch_shape(leaf: Leaf, spec: Any) -> tuple[int, ...]:
    return leaf.to_torch(np.broadcast_to(np.zeros((), bool), spec.shape)).shape


def _packed(specs: Sequence[jax.ShapeDtypeStruct], parts: Sequence[Leaf]) -> Any:
    """The spec of the tensor into which torch packs these variables."""
    shapes = [_torch_shape(part, spec) for part, spec in zip(parts, specs, strict=True)]
    return specs[0].update(shape=(sum(shape[0] for shape in shapes), *shapes[0][1:]))


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Puts a value at a path of a tree of dicts."""
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """The value at a path of a tree of dicts, or None if there is none."""
    for part in path:
        if not isinstance(tree, Mapping) or part not in tree:
            return None
        tree = tree[part]
    return tree


def flattened(name: str) -> str:
    """A name without its numeric parts, as ``continual`` flattens it."""
    return ".".join(part for part in name.split(".") if not part.isdigit())
