"""Files of stream states, written atomically and accepted only by the network that saved them."""

import dataclasses
import functools
import hashlib
import io
import json
import operator
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cojax.frames import Spec, State, map_streams
from cojax.module import CoModule, walk

_FORMAT = 1


class StateFileError(ValueError):
    """A stream's file cannot be read, is damaged, or belongs to another network."""


@dataclasses.dataclass
class StateFile:
    """Everything that a stream needs to resume.

    Attributes:
      network: a description of the network, one line per module.
      weights: a digest of its variables.
      spec: the spec of a step.
      step: the number of steps taken.
      state: the network's state.
    """

    network: list[str]
    weights: str
    spec: Any
    step: int
    state: State

    @classmethod
    def of(
        cls, net: CoModule, variables: Mapping[str, Any], spec: Any, step: int, state: State
    ) -> "StateFile":
        return cls(description(net), digest(variables), spec, step, jax.device_get(state))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a temporary file beside the target, then moves it into place."""
        target = Path(path)
        arrays = {f"{i}": _raw(leaf) for i, (_, leaf) in enumerate(_flat(self.state))}
        header = {
            "format": _FORMAT,
            "network": self.network,
            "weights": self.weights,
            "spec": map_streams(lambda s: {"shape": s.shape, "dtype": s.dtype.name}, self.spec),
            "step": self.step,
            "leaves": [
                {"path": path, "dtype": np.asarray(leaf).dtype.name}
                for path, leaf in _flat(self.state)
            ],
        }
        content = io.BytesIO()
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        np.savez(content, allow_pickle=False, **arrays)
        body = content.getvalue()
        handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(body).digest() + body)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, _mode_of(target))
            os.replace(beside, target)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "StateFile":
        """Reads a file. Raises a StateFileError for anything but a complete file of this format."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise StateFileError(f"{path} cannot be read: {error}") from error
        checksum, body = content[:32], content[32:]
        if hashlib.sha256(body).digest() != checksum:
            raise StateFileError(
                f"{path} is damaged or no stream's state: its checksum does not match; take an "
                "older save, or start a fresh stream"
            )
        try:
            with np.load(io.BytesIO(body), allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                version = header["format"]
                if version == _FORMAT:
                    return cls._from(header, file)
        except (LookupError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise StateFileError(f"{path} is no stream's state: {error!r}") from error
        raise StateFileError(f"{path} has format {version}, this version reads format {_FORMAT}")

    @classmethod
    def _from(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "StateFile":
        state: State = {}
        for i, described in enumerate(header["leaves"]):
            *folders, name = described["path"]
            place = functools.reduce(lambda tree, key: tree.setdefault(key, {}), folders, state)
            place[name] = arrays[f"{i}"].view(jnp.dtype(described["dtype"]))
        spec = map_streams(_spec, header["spec"])
        step = operator.index(header["step"])
        return cls(header["network"], header["weights"], spec, step, state)

    def require_same(
        self, net: CoModule, variables: Mapping[str, Any], path: str | os.PathLike[str]
    ) -> None:
        """Raises a StateFileError unless saved by a stream of this network with these variables."""
        for i, (saved, own) in enumerate(
            zip([*self.network, ""], [*description(net), ""], strict=False)
        ):
            if saved != own:
                raise StateFileError(
                    f"{path} was saved by another network: its module {i} is {saved or 'missing'}, "
                    f"this one's is {own or 'missing'}"
                )
        if self.weights != digest(variables):
            raise StateFileError(
                f"{path} was saved with other variables than these; a state computed by other "
                "weights does not go on as it would have (Stream.restore takes it all the same)"
            )


def description(net: CoModule) -> list[str]:
    """The modules of a network with their arguments, one line each, the same in every process."""
    lines = []
    for path, module in walk(net):
        fields = {
            field.name: _described(getattr(module, field.name))
            for field in dataclasses.fields(module)
            if field.name not in {"parent", "name", "layers"} | module._without_effect
        }
        arguments = ", ".join(f"{name}={value}" for name, value in fields.items())
        lines.append(f"{'.'.join(path) or '(root)'}: {type(module).__name__}({arguments})")
    return lines


def digest(tree: Any) -> str:
    """A digest of every leaf of a tree of arrays: paths, dtypes, shapes and bits."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]:
        array = np.asarray(leaf)
        whole.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def _described(value: Any) -> str:
    if isinstance(value, functools.partial):
        inner = [_described(value.func), *map(_described, value.args)]
        inner += [f"{name}={_described(each)}" for name, each in value.keywords.items()]
        return f"partial({', '.join(inner)})"
    if isinstance(value, type | np.dtype) and value is not None:
        return np.dtype(value).name if not isinstance(value, type) else value.__name__
    if isinstance(value, np.ndarray | jax.Array):
        return digest(value)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value))})"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return repr(value)


def _flat(state: State) -> list[tuple[list[str], Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [([part.key for part in path], leaf) for path, leaf in leaves]


def _raw(leaf: Any) -> np.ndarray:
    """An array that numpy can store: bfloat16 and similar dtypes as unsigned integers."""
    array = np.asarray(leaf)
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array


def _spec(described: Mapping[str, Any]) -> Spec:
    return Spec(tuple(described["shape"]), jnp.dtype(described["dtype"]))


def _mode_of(path: Path) -> int:
    """The permissions of a file, or those that a new one would get."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        os.umask(mask := os.umask(0))
        return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable, where the system supports it."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
