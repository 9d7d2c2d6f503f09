"""Folding of batch norms into the convolutions before them, for inference."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax.core import FrozenDict, unfreeze
from jax import Array, lax

from cojax.combinators.parallel import Parallel
from cojax.combinators.sequential import Sequential
from cojax.container import Parent, key
from cojax.layers.closure import Identity
from cojax.layers.conv import Conv1d, Conv2d, Conv3d, _Conv
from cojax.layers.linear import Linear
from cojax.layers.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm
from cojax.module import CoModule, uses

Variables = dict[str, Any]

# The convolutions with the axes of each norm.
_PER_CHANNEL: dict[type[CoModule], type[_Conv]] = {
    BatchNorm1d: Conv1d,
    BatchNorm2d: Conv2d,
    BatchNorm3d: Conv3d,
}


def fold_batch_norm(net: CoModule, variables: Mapping[str, Any]) -> tuple[CoModule, Variables]:
    """Folds batch norms into the convolutions directly before them, for inference.

    Such a norm scales and shifts the outputs of its convolution; the folded convolution has scaled
    kernels and a bias instead. Outputs are the same, up to rounding. Timings and states are the
    same too: a state of one network fits the other. The statistics are fixed to those in
    ``variables``, so a folded network should not be trained.

    Norms are folded if they follow a convolution (such as :class:`Conv1d`), a :class:`Linear` over
    the channels or a graph convolution of :mod:`cojax.models`, but your own subclasses of these
    layers are kept if they compute something else. Where it follows none, a :class:`BatchNorm1d`,
    2d or 3d becomes a depthwise convolution with a kernel of one: two arrays instead of five.
    Subclasses of these and a :class:`BatchNorm` then stay norms.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, https://arxiv.org/abs/1712.05877, section 3.2;
    ``torch.nn.utils.fuse_conv_bn_eval``.

    Example::

        net = co.Sequential(co.Conv1d(6, 4, kernel_size=3), co.BatchNorm1d(4), co.ReLU())
        variables = net.init(jax.random.key(0), method="declare")
        folded, constants = co.fold_batch_norm(net, variables)
        assert "batch_stats" not in constants

        x = jnp.ones((1, 6, 10))
        assert jnp.allclose(folded.apply(constants, x), net.apply(variables, x), atol=1e-6)

    Args:
      net: the network.
      variables: its variables.

    Returns:
      The network without these norms (in place of each folded one is an :class:`Identity`, so that
      names stay the same), and its variables.

    Raises:
      ValueError: if the statistics or parameters of a norm are missing, or a module with variables
        is used in more than one place.
    """
    shared = [places for places in uses(net).values() if len(places) > 1]
    for places in shared:
        if any(_at(variables, path) for path in places):
            listed = " and ".join(".".join(path) for path in places)
            raise ValueError(
                f"{listed} are one module, whose variables cannot be folded for each of them; give "
                "each place a module of its own"
            )
    return fold(net, unfreeze(dict(variables)))


@functools.singledispatch
def fold(module: CoModule, variables: Variables) -> tuple[CoModule, Variables]:
    """Returns the module and its variables, folded.

    Classes that are folded in another way register their own implementation.
    """
    return within(module, variables, adjacent(module))


@fold.register
def _(norm: _BatchNorm, variables: Variables) -> tuple[CoModule, Variables]:
    """Returns a convolution that scales and shifts each channel, as the norm does."""
    affine, kind = scale_and_shift(norm, variables), _PER_CHANNEL.get(type(norm))
    if affine is None or kind is None:
        return norm, variables
    channels = norm.num_features
    conv = kind(channels, channels, 1, groups=channels, bias=False, param_dtype=norm.param_dtype)
    ones = jnp.ones((1,) * (2 + kind.space) + (channels,), affine[0].dtype)
    return scaled(conv, {"params": {"kernel": ones}}, *affine)


def adjacent(module: CoModule) -> list[tuple[str, str]]:
    """Returns the pairs of children, by name, of which the first alone feeds the second."""
    return list(itertools.pairwise(module.order)) if _computes_as(module, Sequential) else []


def within(
    module: CoModule, variables: Variables, pairs: list[tuple[str, str]]
) -> tuple[CoModule, Variables]:
    """Folds each of the modules that a module holds in ``layers``, and these pairs of them."""
    if not isinstance(module, Parent):
        return module, variables
    folded = {name: fold(child, _of(variables, name)) for name, child in module.children().items()}
    for before, norm in pairs:
        affine = scale_and_shift(module.children()[norm], _of(variables, norm))
        if affine is not None and foldable(folded[before][0]):
            folded[before] = scaled(*folded[before], *affine)
            folded[norm] = (Identity(), {})
    return _rebuilt(module, variables, folded)


def foldable(module: CoModule) -> bool:
    """Returns whether a norm of a module's output channels can be folded into the module.

    For a :class:`Parallel`, it is a norm of the sum of the outputs, folded into all branches.
    """
    if _computes_as(module, Parallel):
        return all(map(foldable, module.children().values()))
    if _computes_as(module, Linear):
        return module.channel_dim == 1
    return _computes_as(module, _Conv)


def _computes_as(module: CoModule, kind: type[CoModule]) -> bool:
    """Returns whether a module is of this kind and does not override how it computes."""
    return isinstance(module, kind) and all(
        getattr(type(module), method, None) is getattr(kind, method, None)
        for method in ("clip", "step", "chunk", "flow_through")
    )


def scale_and_shift(norm: CoModule, variables: Variables) -> tuple[Array, Array] | None:
    """Returns a norm's scale and shift of each channel, or None if they are not constant."""
    if not _computes_as(norm, _BatchNorm) or not norm.track_running_stats:
        return None
    if "batch_stats" not in variables:
        raise ValueError("the variables lack batch_stats, what a batch norm has measured")
    learnt, running = variables.get("params", {}), variables["batch_stats"]
    wanted = {"scale": norm.affine, "bias": norm.affine and norm.bias}
    lacking = [name for name, has in wanted.items() if has and name not in learnt]
    if lacking:
        raise ValueError(f"the variables lack params of a batch norm: {', '.join(lacking)}")
    scale = lax.rsqrt(running["var"] + norm.eps)
    if wanted["scale"]:
        scale = scale * learnt["scale"]
    shift = -running["mean"] * scale
    return scale, shift + learnt["bias"] if wanted["bias"] else shift


def scaled(
    module: Any, variables: Variables, scale: Array, shift: Array
) -> tuple[CoModule, Variables]:
    """Returns a foldable module with its output, or the sum of its outputs, scaled and shifted."""
    if isinstance(module, Parallel):
        shifts = itertools.chain([shift], itertools.repeat(jnp.zeros_like(shift)))
        each = {
            name: scaled(child, _of(variables, name), scale, shift)
            for (name, child), shift in zip(module.children().items(), shifts, strict=False)
        }
        return _rebuilt(module, variables, each)
    params = variables["params"]
    kernel = params["kernel"] * scale
    bias = shift + params["bias"] * scale if module.bias else shift
    dtype = params["kernel"].dtype
    params = {"kernel": kernel.astype(dtype), "bias": jnp.asarray(bias, dtype)}
    return module.clone(bias=True), {"params": params}


def _rebuilt(
    module: Any, variables: Variables, folded: Mapping[str, tuple[CoModule, Variables]]
) -> tuple[CoModule, Variables]:
    """Returns the module and its variables, with these children and theirs replaced."""
    found: Variables = {}
    for collection, tree in variables.items():
        own = {name: leaf for name, leaf in tree.items() if name not in map(key, folded)}
        theirs = {key(name): each.get(collection) for name, (_, each) in folded.items()}
        kept = own | {name: leaves for name, leaves in theirs.items() if leaves}
        if kept:
            found[collection] = kept
    layers = {**module.layers, **{name: child for name, (child, _) in folded.items()}}
    return module.clone(layers=FrozenDict(layers)), found


def _of(variables: Mapping[str, Any], name: str) -> Variables:
    """Returns the variables of a child."""
    return {
        collection: tree[key(name)] for collection, tree in variables.items() if key(name) in tree
    }


def _at(variables: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """Returns the variables of the module at a path."""
    return functools.reduce(_of, path, variables)
