"""Loads and saves PyTorch checkpoints.

Reading and writing ``.safetensors`` files needs no torch; the other formats do.
"""

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import unfreeze

from cojax.interop.names import Entry, entries, flattened
from cojax.module import CoModule
from cojax.optional import require

Rename = Mapping[str, str] | Callable[[str], str]

_TORCH_FILES = (".pt", ".pth", ".pyth", ".ckpt")
# More mismatches than this are not misspellings, and comparing all of them takes minutes.
_MANY = 50
_NESTED_UNDER = ("state_dict", "model_state", "model")


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit a network. The message names every such entry."""


def load_torch(
    net: CoModule,
    source: Mapping[str, Any] | str | os.PathLike[str],
    flatten: bool = False,
    rename: Rename | None = None,
) -> dict[str, Any]:
    """Loads the variables of a network from a PyTorch checkpoint.

    Every tensor is used exactly once. Floating ones keep their dtype (float64 becomes float32, as
    everywhere in JAX, unless x64 is enabled). ``num_batches_tracked`` may be absent, and is then
    zero.

    Example::

        import torch

        torch.save(torch.nn.Conv1d(6, 4, 3).state_dict(), "weights.pt")
        net = co.Conv1d(6, 4, kernel_size=3)
        variables = co.load_torch(net, "weights.pt")
        assert net.apply(variables, jnp.ones((1, 6, 5))).shape == (1, 4, 3)

    Args:
      net: the network, whose modules are named as in the checkpoint.
      source: a ``state_dict`` of torch tensors or numpy arrays; or a file: ``.safetensors``, or
        (with torch, always with ``weights_only=True``) ``.pt``, ``.pth``, ``.pyth``, ``.ckpt``. The
        state dict may be nested under "state_dict", "model_state" or "model". Its names may be
        those that ``continual`` gives to branches that it delays.
      flatten: whether the checkpoint's names are flattened, i.e. lack their numeric parts.
      rename: from names in the checkpoint to names in the network: a mapping of those that differ,
        or a function.

    Returns:
      The variables: ``params`` and, where there are any, ``batch_stats`` and ``constants``.

    Raises:
      CheckpointError: if the file cannot be read, or if the checkpoint does not fit. The message
        then lists every missing, unexpected and mis-shaped entry.
      TypeError: for a network with variables that have no names in torch, such as those of your own
        layers.
    """
    state_dict = read(source)
    given: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, tensor in state_dict.items():
        new = _renamed(name, rename)
        if not isinstance(new, str):
            raise CheckpointError(f"the checkpoint's entry {name!r} is called {new!r}: no name")
        if new in given:
            raise CheckpointError(f"two entries of the checkpoint are called {new!r} when renamed")
        given[new], origins[new] = tensor, name

    wanted = entries(net)
    names = _names(wanted, given, flatten)
    problems = [
        *_missing(wanted, names, given),
        *_unexpected(wanted, names, given, origins),
        *_misshaped(wanted, names, given, origins),
    ]
    values: dict[tuple[str, ...], np.ndarray] = {}
    for entry in wanted:
        if not problems and names[entry.name] in given:
            try:
                value = _value(entry, given[names[entry.name]])
            # Torch raises the latter two where numpy cannot hold a tensor: sparse, quantised, meta.
            except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
                problems.append(f"{names[entry.name]} {error}")
                continue
            earlier = values.setdefault(entry.path, value)
            if earlier is not value and not np.array_equal(earlier, value):
                problems.append(f"{names[entry.name]} differs from another use of the same module")
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit {type(net).__name__}:\n  " + "\n  ".join(problems)
        )
    variables: dict[str, Any] = {}
    for entry in wanted:
        absent = np.zeros(entry.spec.shape, entry.spec.dtype)
        entry.put(variables, values.get(entry.path, absent))
    variables.setdefault("params", {})
    return variables


def to_torch(
    net: CoModule,
    variables: Mapping[str, Any],
    delayed_names: bool = False,
    flatten: bool = False,
) -> dict[str, Any]:
    """Converts variables to a ``state_dict`` of torch tensors: the inverse of :func:`load_torch`.

    Example::

        import torch

        net = co.Conv1d(6, 4, kernel_size=3)
        variables = net.init(jax.random.key(0), method="declare")
        torch.nn.Conv1d(6, 4, 3).load_state_dict(co.to_torch(net, variables))

    Args:
      net: the network.
      variables: its variables.
      delayed_names: whether branches that ``continual`` delays by itself are named as there
        (``0.0.weight``), so that the same network built with ``continual`` can load them.
      flatten: whether to flatten names as ``continual`` does, by dropping their numeric parts.

    Returns:
      The tensors by name, in torch's order.

    Raises:
      CheckpointError: if the variables are not those of the network, have a dtype of fewer than 16
        bits, or flattened names clash.
      TypeError: as for :func:`load_torch`.
      ImportError: if torch is not installed.
    """
    torch = _torch("to_torch")
    return {
        name: _half(torch, value) if value.dtype == jnp.bfloat16 else torch.from_numpy(value)
        for name, value in _exported(net, variables, delayed_names, flatten).items()
    }


def save_torch(
    path: str | os.PathLike[str],
    net: CoModule,
    variables: Mapping[str, Any],
    delayed_names: bool = False,
    flatten: bool = False,
) -> None:
    """Writes a checkpoint that torch can load.

    Example::

        net = co.Conv1d(6, 4, kernel_size=3)
        variables = net.init(jax.random.key(0), method="declare")
        co.save_torch("weights.safetensors", net, variables)

    Args:
      path: ``.safetensors`` (needs no torch), or ``.pt``, ``.pth``, ``.pyth``, ``.ckpt``.
      net: the network.
      variables: its variables.
      delayed_names: as for :func:`to_torch`.
      flatten: as for :func:`to_torch`.

    Raises:
      CheckpointError: as for :func:`to_torch`, or if ``path`` has another suffix.
      TypeError: as for :func:`load_torch`.
      ImportError: if torch is needed and not installed.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(_exported(net, variables, delayed_names, flatten), path)
    elif path.suffix in _TORCH_FILES:
        state_dict = to_torch(net, variables, delayed_names, flatten)
        _torch(f"writing {path.suffix} files (unlike .safetensors)").save(state_dict, path)
    else:
        raise CheckpointError(_unknown_suffix(path))


def _exported(
    net: CoModule, variables: Mapping[str, Any], delayed_names: bool, flatten: bool
) -> dict[str, np.ndarray]:
    exported, problems, wanted = {}, [], entries(net)
    flat = _flattened(wanted) if flatten else {}
    for entry in wanted:
        value = entry.of(variables)
        name = flat.get(entry.name, entry.delayed_name if delayed_names else entry.name)
        if value is None:
            problems.append(f"missing {'/'.join(entry.path)}")
        elif np.shape(value) != entry.spec.shape:
            problems.append(
                f"{'/'.join(entry.path)} has shape {np.shape(value)}, expected {entry.spec.shape}"
            )
        elif value.dtype.isbuiltin == 2 and value.dtype != jnp.bfloat16:  # not numpy's
            problems.append(
                f"{'/'.join(entry.path)} has dtype {value.dtype}, which is not written: cast it, "
                "e.g. to bfloat16"
            )
        else:
            exported[name] = np.array(entry.leaf.to_torch(value), order="C")
    known = {path for entry in wanted for path in entry.paths}
    given = traverse_util.flatten_dict(unfreeze(dict(variables)))
    problems += [
        f"unexpected {'/'.join(path)}, of shape {np.shape(value)}"
        for path, value in given.items()
        if path not in known
    ]
    if problems:
        raise CheckpointError(
            f"the variables are not those of {type(net).__name__}:\n  " + "\n  ".join(problems)
        )
    return exported


def read(source: Mapping[str, Any] | str | os.PathLike[str]) -> Mapping[str, Any]:
    """The tensors, by name, of a checkpoint in any form that :func:`load_torch` takes."""
    where = "the checkpoint"
    content: Any = source
    if isinstance(source, str | os.PathLike):
        where, content = str(source), _read_file(Path(source))
    for key in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{where} holds a {type(content).__name__}, expected a state_dict; save "
            "module.state_dict(), not the module"
        )
    for name, tensor in content.items():
        if not hasattr(tensor, "shape"):
            raise CheckpointError(
                f"{where} is no state_dict: its entry {name!r} is a {type(tensor).__name__}; a "
                f"state_dict may be nested under one of {', '.join(map(repr, _NESTED_UNDER))}"
            )
    return content


def _read_file(path: Path) -> Any:
    if path.suffix not in (".safetensors", *_TORCH_FILES):
        raise CheckpointError(_unknown_suffix(path))
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        torch = _torch(f"reading {path.suffix} files (unlike .safetensors)")
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of tensors (nothing else is ever loaded): "
            f"{error}"
        ) from error


def _unknown_suffix(path: Path) -> str:
    return f"{path} must end in .safetensors, {', '.join(_TORCH_FILES)}"


def _torch(purpose: str) -> Any:
    return require("torch", purpose, "torch", "torch")


def _half(torch: Any, value: np.ndarray) -> Any:
    """A tensor of bfloat16, a dtype that numpy does not have."""
    return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)


def _value(entry: Entry, tensor: Any) -> np.ndarray:
    """A tensor as a variable. Raises a ValueError if the variable cannot hold its values."""
    array = array_of(tensor)
    kind = jnp.floating if jnp.issubdtype(entry.spec.dtype, jnp.floating) else jnp.integer
    if not jnp.issubdtype(array.dtype, kind):
        raise ValueError(f"has dtype {array.dtype}, expected {kind.__name__} values")
    floating = kind is jnp.floating
    dtype = entry.spec.dtype
    if floating:
        longest = np.float64 if array.dtype == np.longdouble else array.dtype
        dtype = jax.dtypes.canonicalize_dtype(longest)
    with np.errstate(over="ignore"):
        value = array.astype(dtype)
    lost = np.isfinite(array) & ~np.isfinite(value) if floating else array != value
    if lost.any():
        raise ValueError(f"has values beyond the range of {np.dtype(dtype).name}")
    return entry.leaf.from_torch(value)


def array_of(tensor: Any) -> np.ndarray:
    """The values of a tensor of torch, or of an array, in the byte order of this machine."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            import torch

            return tensor.view(torch.uint16).numpy().view(jnp.bfloat16)
        return tensor.numpy()
    array = np.asarray(tensor)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _renamed(name: str, rename: Rename | None) -> str:
    if rename is None:
        return name
    return rename(name) if callable(rename) else rename.get(name, name)


def _names(wanted: list[Entry], given: Mapping[str, Any], flatten: bool) -> dict[str, str]:
    """The checkpoint's name for each variable, by the variable's torch name."""
    if not flatten:
        # A checkpoint follows one naming throughout: take the one that matches more of its names.
        own = {entry.name: entry.name for entry in wanted}
        delayed = {entry.name: entry.delayed_name for entry in wanted}
        return max(own, delayed, key=lambda names: len(given.keys() & set(names.values())))
    return _flattened(wanted)


def _flattened(wanted: list[Entry]) -> dict[str, str]:
    """The flattened name of each variable, by the variable's torch name."""
    names: dict[str, list[str]] = {}
    for entry in wanted:
        names.setdefault(flattened(entry.name), []).append(entry.name)
    clashes = [f"{name} ({', '.join(long)})" for name, long in names.items() if len(long) > 1]
    if clashes:
        raise CheckpointError(
            "the network's names cannot be flattened: without their numeric parts several become "
            + ", ".join(clashes)
        )
    return {entry.name: flattened(entry.name) for entry in wanted}


def _missing(wanted: list[Entry], names: Mapping[Any, str], given: Mapping[str, Any]) -> list[str]:
    used = set(names.values())
    found = {entry.path for entry in wanted if names[entry.name] in given}
    missing = [
        entry
        for entry in wanted
        if entry.path not in found and entry.leaf.name != "num_batches_tracked"
    ]
    unused = [name for name in given if name not in used]
    return [
        f"missing {names[entry.name]}, of shape {entry.torch_shape}"
        + _nearest(names[entry.name], unused, given)
        for entry in missing
    ]


def _unexpected(
    wanted: list[Entry],
    names: Mapping[Any, str],
    given: Mapping[str, Any],
    origins: Mapping[str, str],
) -> list[str]:
    used = set(names.values())
    absent = {names[e.name]: e.torch_shape for e in wanted if names[e.name] not in given}
    return [
        f"unexpected {_renaming(name, origins)}, of shape {tuple(tensor.shape)}"
        + _nearest(name, list(absent))
        for name, tensor in given.items()
        if name not in used
    ]


def _misshaped(
    wanted: list[Entry],
    names: Mapping[Any, str],
    given: Mapping[str, Any],
    origins: Mapping[str, str],
) -> list[str]:
    return [
        f"{_renaming(name, origins)} has shape {tuple(given[name].shape)}, expected "
        f"{entry.torch_shape}"
        for entry in wanted
        for name in [names[entry.name]]
        if name in given and tuple(given[name].shape) != entry.torch_shape
    ]


def _renaming(name: str, origins: Mapping[str, str]) -> str:
    return name if origins[name] == name else f"{name} ({origins[name]} in the checkpoint)"


def _nearest(name: str, candidates: list[str], given: Mapping[str, Any] | None = None) -> str:
    if len(candidates) > _MANY:
        return ""
    close = difflib.get_close_matches(name, candidates, n=2, cutoff=0.5)
    if not close:
        return ""
    shown = [f"{c} {tuple(given[c].shape)}" if given is not None else c for c in close]
    return f" (nearest: {', '.join(shown)})"
