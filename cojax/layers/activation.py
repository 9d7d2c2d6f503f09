"""Activation functions."""

import jax
from jax import Array

from cojax.frames import Spec
from cojax.layers.axes import non_temporal
from cojax.module import TimeLocal, require_floating


class _Activation(TimeLocal):
    """A function of each entry. Shapes: any, kept."""

    def output_spec(self, x: Spec) -> Spec:
        require_floating(x, self)
        return x


class ReLU(_Activation):
    """``max(x, 0)``. Source: ``torch.nn.ReLU``; ``inplace`` is accepted and has no meaning here."""

    inplace: bool = False

    def clip(self, x: Array, train: bool = False) -> Array:
        return jax.nn.relu(x)


class Sigmoid(_Activation):
    """``1 / (1 + exp(-x))``. Source: ``torch.nn.Sigmoid``."""

    def clip(self, x: Array, train: bool = False) -> Array:
        return jax.nn.sigmoid(x)


class SiLU(_Activation):
    """``x * sigmoid(x)``, or swish. Source: ``torch.nn.SiLU``; ``inplace`` has no meaning."""

    inplace: bool = False

    def clip(self, x: Array, train: bool = False) -> Array:
        return jax.nn.silu(x)


class Softmax(_Activation):
    """``exp(x) / sum(exp(x))`` along one axis.

    Source: ``torch.nn.Softmax``.

    Attributes:
      dim: the axis, counted in the clip ``(B, C, T, *S)`` in every mode. It cannot be time.

    Raises:
      InputError: if ``dim`` is the time axis or none, or for a dtype that is not floating.
    """

    dim: int

    def output_spec(self, x: Spec) -> Spec:
        non_temporal(self.dim, len(x.shape) + 1, "dim", self)
        return super().output_spec(x)

    def clip(self, x: Array, train: bool = False) -> Array:
        return jax.nn.softmax(x, axis=self.dim)
