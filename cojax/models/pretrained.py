"""Loads weights that others trained into the networks of the zoo."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from cojax.interop.names import Entry, at, entries, put
from cojax.interop.torch import CheckpointError, load_torch, read
from cojax.models.formats import FORMATS, Format
from cojax.module import CoModule


class Pretrained(NamedTuple):
    """The result of loading a checkpoint.

    Example::

        def told(loaded: co.models.Pretrained) -> str:
            return f"{loaded.format}; to be trained: {', '.join(loaded.fresh)}"

        loaded = co.models.Pretrained({}, "co3d X3D", (), fresh=("head.projection.weight",))
        assert told(loaded) == "co3d X3D; to be trained: head.projection.weight"

    Attributes:
      variables: the network's variables.
      format: the format that the checkpoint was recognised as, e.g. "pytorchvideo X3D".
      filled: the torch names of tensors that such files lack, and that have a known value.
      fresh: the torch names of newly initialised tensors, i.e. those of a new head.
    """

    variables: dict[str, Any]
    format: str
    filled: tuple[str, ...]
    fresh: tuple[str, ...]


def load_pretrained(
    net: CoModule,
    source: Mapping[str, Any] | str | os.PathLike[str],
    new_head: Array | None = None,
) -> Pretrained:
    """Loads the variables of a network of the zoo from a checkpoint of another library.

    The format is recognised by the names in the checkpoint: X3D, Slow and I3D of pytorchvideo and
    of PySlowFast, the networks of co3d, the skeleton networks of continual-skeletons, including
    regular ones, and those of CoOadTR. As with :func:`cojax.load_torch`, every tensor is used
    exactly once.

    Example::

        net = co.models.cost_gcn(channels=(4, 4), num_frames=20)
        checkpoint = co.to_torch(net, net.init(jax.random.key(0), method="declare"))

        pretrained = co.models.load_pretrained(net, checkpoint)  # or a file, by its path
        assert pretrained.format == "continual-skeletons"
        variables = pretrained.variables

    Args:
      net: the network.
      source: a ``state_dict`` or a file, as for :func:`cojax.load_torch`.
      new_head: a key to initialise the classification layer anew, whatever the checkpoint holds for
        it: for classes other than those that it was trained on.

    Returns:
      A :class:`Pretrained`, with the variables and details of how they were loaded.

    Raises:
      CheckpointError: if the file cannot be read, has no known format, or does not fit the network.
        In the last case, the message lists every missing, unexpected and mis-shaped entry.
    """
    state_dict = dict(read(source))
    format = _recognised(state_dict)
    wanted = entries(net)
    own_name = _own_names(wanted)
    names = {name: own_name(format.rename(name)) for name in state_dict}

    head = [entry for entry in wanted if entry.name.startswith(f"{format.head}.")]
    fresh = {}
    if new_head is not None:
        fresh = _initial(net, head, new_head)
        state_dict = {k: v for k, v in state_dict.items() if names[k] not in fresh}
    given = {names[name]: tensor for name, tensor in state_dict.items()}
    filled = format.fill(given)
    try:
        variables = load_torch(net, {**state_dict, **filled, **fresh}, rename=names)
    except CheckpointError as error:
        hint = ""
        if any(e.name in given and tuple(given[e.name].shape) != e.torch_shape for e in head):
            hint = (
                "\nIf the classes are not those of the checkpoint: new_head=jax.random.key(0) "
                f"initialises {format.head} anew, and keeps the rest."
            )
        raise CheckpointError(f"taken for {format.name}, {error}{hint}") from error
    return Pretrained(variables, format.name, tuple(filled), tuple(fresh))


def _recognised(state_dict: Mapping[str, Any]) -> Format:
    for format in FORMATS:
        if format.recognise(state_dict.keys()):
            return format
    raise CheckpointError(
        f"the names {', '.join(list(state_dict)[:3])}, ... match no known format "
        f"({', '.join(format.name for format in FORMATS)}); co.load_torch loads a checkpoint whose "
        "names are the network's, or are renamed to be"
    )


def _own_names(wanted: list[Entry]) -> Callable[[str], str]:
    """A function that gives the network's name for one that lacks numeric parts."""
    known = {name for entry in wanted for name in (entry.name, entry.delayed_name)}
    alike: dict[str, list[str]] = {}
    for entry in wanted:
        alike.setdefault(_without_numbers(entry.name), []).append(entry.name)

    def own_name(name: str) -> str:
        same = alike.get(_without_numbers(name), [])
        unique = len(same) == 1 and _is_within(name, same[0])
        return same[0] if name not in known and unique else name

    return own_name


def _without_numbers(name: str) -> str:
    first, *rest = name.split(".")
    return ".".join([first, *(part for part in rest if not part.isdigit())])


def _is_within(name: str, longer: str) -> bool:
    """Whether the parts of a name occur in a longer one, in the same order."""
    parts = iter(longer.split("."))
    return all(part in parts for part in name.split("."))


def _initial(net: CoModule, wanted: list[Entry], key: Array) -> dict[str, np.ndarray]:
    """These tensors as ``net.init`` initialises them, by the network's names."""

    @jax.jit
    def initial(key: Array) -> dict[str, Any]:
        variables = net.init(key, method="declare")
        found: dict[str, Any] = {}
        for path in (path for entry in wanted for path in entry.paths):
            put(found, path, at(variables, path))
        return found

    variables = initial(key)
    return {entry.name: entry.leaf.to_torch(entry.of(variables)) for entry in wanted}
