"""How peers are built, and how the counterparts of layers are registered."""

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any, NamedTuple

import continual
from torch import Tensor, nn

import cojax as co
from benchmarks.peers.functions import Functions, functions_within


class NoPeer(TypeError):  # noqa: N818 - a result, not a failure of the program
    """A layer, or an argument of it, has no counterpart in the other library."""


class Options(NamedTuple):
    """How a peer is built.

    Attributes:
      functions: the torch function for each JAX function in Lambdas and reductions.
      as_stream: whether the plain ``torch.nn`` peer computes the outputs of a stream, where these
        differ from those of ``forward``.
      notes: descriptions of what was mended in ``continual``; None to mend nothing.
    """

    functions: Functions
    as_stream: bool = False
    notes: list[str] | None = None

    def mends(self, note: str) -> bool:
        """Whether faults of ``continual`` are mended; if so, adds the note, once."""
        if self.notes is None:
            return False
        if note not in self.notes:
            self.notes.append(note)
        return True

    def translated(self, fn: Callable[..., Any] | None, where: co.CoModule) -> Any:
        """The torch function for a JAX function.

        Raises:
          NoPeer: if there is none.
        """
        if fn is None:
            return None
        if fn not in self.functions:
            raise NoPeer(f"{type(where).__name__} calls {fn!r}, which functions does not translate")
        return self.functions[fn]


def to_continual(
    net: co.CoModule,
    variables: Mapping[str, Any],
    functions: Functions | None = None,
    notes: list[str] | None = None,
) -> Any:
    """The network in ``continual``, with these variables, in eval mode.

    Args:
      net: the network.
      variables: its variables.
      functions: the torch function for each JAX function that the network calls, in addition to
        those that the networks of the zoo call.
      notes: if given, faults of ``continual`` that prevent a comparison are mended, and a sentence
        is appended for each.

    Returns:
      A ``continual`` module with a fresh state.

    Raises:
      NoPeer: if a layer has none; the message names it.
    """
    # A bare torch.nn layer becomes one of continual when it is added to a container or converted.
    options = Options({**functions_within(net), **(functions or {})}, notes=notes)
    peer = continual.continual(in_continual(net, options))
    return _loaded(peer, co.to_torch(net, variables, delayed_names=True))


def to_torch_nn(
    net: co.CoModule,
    variables: Mapping[str, Any],
    functions: Functions | None = None,
    as_stream: bool = False,
) -> nn.Module:
    """The network in plain ``torch.nn``, with these variables, in eval mode.

    Its forward is the network's ``forward``, over clips ``(B, C, T, *S)``.

    Args:
      net: the network.
      variables: its variables.
      functions: as for :func:`to_continual`.
      as_stream: whether the peer equals ``forward_stream`` where that differs from ``forward``:
        layers with ``temporal_fill="replicate"`` replicate the first and the last frame of their
        clip, and attention is over windows.

    Raises:
      NoPeer: if a layer has none; the message names it.
    """
    peer = in_torch(net, Options({**functions_within(net), **(functions or {})}, as_stream))
    return _loaded(peer, co.to_torch(net, variables))


def _loaded(peer: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    dtypes = {tensor.dtype for tensor in state_dict.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        peer = peer.to(dtypes.pop())
    peer.load_state_dict(state_dict, strict=True)
    return peer.eval()


@singledispatch
def in_continual(net: co.CoModule, options: Options) -> nn.Module:
    """The module in ``continual``, or a torch.nn layer that it accepts, without its weights."""
    raise NoPeer(f"{type(net).__name__} has no peer in continual")


@singledispatch
def in_torch(net: co.CoModule, options: Options) -> nn.Module:
    """The module in ``torch.nn``, without its weights."""
    raise NoPeer(f"{type(net).__name__} has no peer in torch.nn")


def both(*kinds: type[co.CoModule]) -> Callable[[Any], Any]:
    """Registers one function for both libraries."""

    def register(function: Any) -> Any:
        for kind in kinds:
            in_continual.register(kind)(function)
            in_torch.register(kind)(function)
        return function

    return register


def only(register: Any, *kinds: type[co.CoModule]) -> Callable[[Any], Any]:
    """Registers one function for several types, in one library."""

    def registered(function: Any) -> Any:
        for kind in kinds:
            register.register(kind)(function)
        return function

    return registered


class Function(nn.Module):
    """A function as a module, of one clip or of a sequence of clips."""

    def __init__(self, fn: Callable[[Any], Any]):
        super().__init__()
        self.fn = fn

    def forward(self, x: Any) -> Any:
        return self.fn(x)
