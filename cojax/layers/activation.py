"""Activation functions, with the values and gradients of ``torch.nn``, also at the kinks.

Axes are counted in the clip ``(B, C, T, *S)`` in every mode, and cannot be the time axis.
``inplace`` is accepted and has no effect.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from cojax.checks import require_floating, require_step
from cojax.errors import InputError
from cojax.frames import Spec
from cojax.layers.arguments import require_one_of, require_positive
from cojax.layers.axes import non_temporal
from cojax.layout import channels_last, channels_second
from cojax.module import TimeLocal
from cojax.ops.precision import widened


class _Activation(TimeLocal):
    """Base class: a function without memory, computed in single precision at least, as in torch.

    Shapes: any, kept. Raises an InputError for a dtype that is not floating.
    """

    _without_effect = TimeLocal._without_effect | {"inplace"}

    def output_spec(self, x: Spec) -> Spec:
        require_floating(x, self)
        return x

    def clip(self, x: Array, train: bool = False) -> Array:
        return channels_second(self.of(widened(channels_last(x))).astype(x.dtype))

    def of(self, x: Array) -> Array:
        """Applies the function to ``(B, T, *S, C)``."""
        raise NotImplementedError(f"{type(self).__name__} must define of")


def _clamped(x: Array, low: ArrayLike, high: ArrayLike) -> Array:
    """Returns ``min(max(x, low), high)``, without a gradient at either bound."""
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


def _bent(x: Array, slope: ArrayLike) -> Array:
    """Returns ``x``, or ``slope * x`` below zero."""
    return jnp.where(x > 0, x, slope * x)


# Elementwise.


class Threshold(_Activation):
    """``x`` where it exceeds ``threshold``, otherwise ``value``. Source: ``torch.nn.Threshold``."""

    threshold: float
    value: float
    inplace: bool = False

    def of(self, x: Array) -> Array:
        return jnp.where(x <= self.threshold, self.value, x)


class ReLU(_Activation):
    """``max(x, 0)``. Source: ``torch.nn.ReLU``."""

    inplace: bool = False

    def of(self, x: Array) -> Array:
        return jax.nn.relu(x)


class RReLU(_Activation):
    """``x``, or ``slope * x`` below zero, with a slope between ``lower`` and ``upper``.

    In training, a slope is drawn for every entry and at every step, which needs an rng named
    "dropout"; otherwise the slope is the mean of the two bounds. Source: ``torch.nn.RReLU``; Xu et
    al., 2015, https://arxiv.org/abs/1505.00853.

    Raises:
      ValueError: at construction, unless ``lower <= upper``.
    """

    lower: float = 1 / 8
    upper: float = 1 / 3
    inplace: bool = False

    def __post_init__(self) -> None:
        if not self.lower <= self.upper:
            raise ValueError(f"{self.lower=} must not exceed {self.upper=}")
        super().__post_init__()

    def clip(self, x: Array, train: bool = False) -> Array:
        if not train:
            return super().clip(x)
        key = self.make_rng("dropout")
        return _bent(x, jax.random.uniform(key, x.shape, x.dtype, self.lower, self.upper))

    def of(self, x: Array) -> Array:
        return _bent(x, (self.lower + self.upper) / 2)


class Hardtanh(_Activation):
    """``min(max(x, min_val), max_val)``. Source: ``torch.nn.Hardtanh``.

    Raises:
      ValueError: at construction, unless ``min_val < max_val``.
    """

    min_val: float = -1.0
    max_val: float = 1.0
    inplace: bool = False

    def __post_init__(self) -> None:
        if not self.min_val < self.max_val:
            raise ValueError(f"{self.min_val=} must be below {self.max_val=}")
        super().__post_init__()

    def of(self, x: Array) -> Array:
        return _clamped(x, self.min_val, self.max_val)


class ReLU6(_Activation):
    """``min(max(x, 0), 6)``. Source: ``torch.nn.ReLU6``."""

    inplace: bool = False

    def of(self, x: Array) -> Array:
        return _clamped(x, 0, 6)


class Sigmoid(_Activation):
    """``1 / (1 + exp(-x))``. Source: ``torch.nn.Sigmoid``."""

    def of(self, x: Array) -> Array:
        return jax.nn.sigmoid(x)


class Hardsigmoid(_Activation):
    """``min(max(x + 3, 0), 6) / 6``. Source: ``torch.nn.Hardsigmoid``."""

    inplace: bool = False

    def of(self, x: Array) -> Array:
        return _clamped(x + 3, 0, 6) / 6


class Tanh(_Activation):
    """``tanh(x)``. Source: ``torch.nn.Tanh``."""

    def of(self, x: Array) -> Array:
        return jnp.tanh(x)


class SiLU(_Activation):
    """``x * sigmoid(x)``, or swish. Source: ``torch.nn.SiLU``."""

    inplace: bool = False

    def of(self, x: Array) -> Array:
        return jax.nn.silu(x)


class Hardswish(_Activation):
    """``x * min(max(x + 3, 0), 6) / 6``.

    Source: ``torch.nn.Hardswish``; Howard et al., 2019, https://arxiv.org/abs/1905.02244.
    """

    inplace: bool = False

    def of(self, x: Array) -> Array:
        return x * (_clamped(x + 3, 0, 6) / 6)


class ELU(_Activation):
    """``x``, or ``alpha * (exp(x) - 1)`` below zero.

    Source: ``torch.nn.ELU``; Clevert et al., 2015, https://arxiv.org/abs/1511.07289.
    """

    alpha: float = 1.0
    inplace: bool = False

    def of(self, x: Array) -> Array:
        return jax.nn.elu(x, self.alpha)


class CELU(_Activation):
    """``max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)``.

    Source: ``torch.nn.CELU``; Barron, 2017, https://arxiv.org/abs/1704.07483.

    Raises:
      ValueError: at construction, for an ``alpha`` of zero.
    """

    alpha: float = 1.0
    inplace: bool = False

    def __post_init__(self) -> None:
        if self.alpha == 0:
            raise ValueError("CELU divides by alpha, which must not be zero")
        super().__post_init__()

    def of(self, x: Array) -> Array:
        return jax.nn.celu(x, self.alpha)


class SELU(_Activation):
    """``1.0507 * ELU(x, alpha=1.6733)``, which makes networks self-normalising.

    Source: ``torch.nn.SELU``; Klambauer et al., 2017, https://arxiv.org/abs/1706.02515.
    """

    inplace: bool = False

    def of(self, x: Array) -> Array:
        return jax.nn.selu(x)


class GELU(_Activation):
    """``x * Phi(x)``, where ``Phi`` is the distribution function of the standard normal.

    Source: ``torch.nn.GELU``; Hendrycks and Gimpel, 2016, https://arxiv.org/abs/1606.08415.

    Attributes:
      approximate: "none", or "tanh" to approximate ``Phi(x)`` by ``(1 + tanh(sqrt(2 / pi) * (x +
        0.044715 * x**3))) / 2``.

    Raises:
      ValueError: at construction, for an unknown approximation.
    """

    approximate: str = "none"

    def __post_init__(self) -> None:
        require_one_of("approximate", self.approximate, ("none", "tanh"))
        super().__post_init__()

    def of(self, x: Array) -> Array:
        if self.approximate == "none":
            return jax.nn.gelu(x, approximate=False)
        # Beyond 10 the tanh is 1 in every precision, while the gradient of x**3 may overflow.
        z = _clamped(x, -10, 10)
        return x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2


class Hardshrink(_Activation):
    """``x``, or zero from ``-lambd`` to ``lambd``. Source: ``torch.nn.Hardshrink``."""

    lambd: float = 0.5

    def of(self, x: Array) -> Array:
        return jnp.where(jnp.abs(x) <= self.lambd, 0, x)


class LeakyReLU(_Activation):
    """``x``, or ``negative_slope * x`` below zero. Source: ``torch.nn.LeakyReLU``."""

    negative_slope: float = 0.01
    inplace: bool = False

    def of(self, x: Array) -> Array:
        return _bent(x, self.negative_slope)


class LogSigmoid(_Activation):
    """``log(sigmoid(x))``. Source: ``torch.nn.LogSigmoid``."""

    def of(self, x: Array) -> Array:
        return jax.nn.log_sigmoid(x)


class Softplus(_Activation):
    """``log(1 + exp(beta * x)) / beta``, or ``x`` where ``beta * x`` exceeds ``threshold``.

    Source: ``torch.nn.Softplus``.

    Raises:
      ValueError: at construction, for a ``beta`` of zero.
    """

    beta: float = 1.0
    threshold: float = 20.0

    def __post_init__(self) -> None:
        if self.beta == 0:
            raise ValueError("Softplus divides by beta, which must not be zero")
        super().__post_init__()

    def of(self, x: Array) -> Array:
        scaled = self.beta * x
        return jnp.where(scaled > self.threshold, x, jax.nn.softplus(scaled) / self.beta)


class Softshrink(_Activation):
    """``x`` moved towards zero by ``lambd``, but not past it. Source: ``torch.nn.Softshrink``.

    Raises:
      ValueError: at construction, for a negative ``lambd``.
    """

    lambd: float = 0.5

    def __post_init__(self) -> None:
        if not self.lambd >= 0:
            raise ValueError(f"{self.lambd=} must not be negative")
        super().__post_init__()

    def of(self, x: Array) -> Array:
        return jnp.where(jnp.abs(x) <= self.lambd, 0, x - self.lambd * jnp.sign(x))


class PReLU(_Activation):
    """``x``, or ``negative_slope * x`` below zero, with a learnt slope.

    Source: ``torch.nn.PReLU``; He et al., 2015, https://arxiv.org/abs/1502.01852.

    Attributes:
      num_parameters: 1, or the number of channels, each of which then has its own slope.
      negative_slope_init: the initial slope (``init`` in the constructor).
      param_dtype: the dtype of the slopes.

    Shapes:
      any, kept. Variable ``params`` ``negative_slope`` ``(num_parameters,)``.

    Raises:
      ValueError: at construction, unless ``num_parameters`` is positive.
      InputError: for a different number of channels, or a dtype that is not floating.
    """

    num_parameters: int = 1
    negative_slope_init: float = 0.25
    param_dtype: DTypeLike = jnp.float32

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        param_dtype: DTypeLike = jnp.float32,
        *,
        negative_slope_init: float | None = None,
        **linen: Any,
    ):
        # The field cannot be called init: that is how every Flax module creates its variables.
        self._construct(
            num_parameters=num_parameters,
            negative_slope_init=init if negative_slope_init is None else negative_slope_init,
            param_dtype=param_dtype,
            **linen,
        )

    def __post_init__(self) -> None:
        require_positive(num_parameters=self.num_parameters)
        super().__post_init__()

    def setup(self) -> None:
        initial = jax.nn.initializers.constant(self.negative_slope_init)
        self.negative_slope = self.param(
            "negative_slope", initial, (self.num_parameters,), self.param_dtype
        )

    def output_spec(self, x: Spec) -> Spec:
        if self.num_parameters not in (1, x.shape[1]):
            raise InputError(
                f"PReLU has {self.num_parameters} slopes, one for each channel, and got "
                f"{x.shape[1]} channels in a step of shape {x.shape}"
            )
        return super().output_spec(x)

    def of(self, x: Array) -> Array:
        return _bent(x, self.negative_slope.astype(x.dtype))


class Softsign(_Activation):
    """``x / (1 + |x|)``. Source: ``torch.nn.Softsign``."""

    def of(self, x: Array) -> Array:
        return jax.nn.soft_sign(x)


class Tanhshrink(_Activation):
    """``x - tanh(x)``. Source: ``torch.nn.Tanhshrink``."""

    def of(self, x: Array) -> Array:
        return x - jnp.tanh(x)


# Along one axis.


class _AlongAxis(_Activation):
    dim: int

    @nn.nowrap
    def axis(self, x: Array) -> int:
        """Returns ``dim`` as an axis of ``x``, whose channels come last."""
        axis = self.dim % x.ndim
        return -1 if axis == 1 else axis - (axis > 1)

    def output_spec(self, x: Spec) -> Spec:
        non_temporal(self.dim, len(x.shape) + 1, "dim", self)
        return super().output_spec(x)


class Softmin(_AlongAxis):
    """``exp(-x) / sum(exp(-x))`` along the axis ``dim``. Source: ``torch.nn.Softmin``.

    Raises:
      InputError: if ``dim`` is the time axis or no axis of the clip, or for a dtype that is not
        floating.
    """

    def of(self, x: Array) -> Array:
        return jax.nn.softmax(-x, axis=self.axis(x))


class Softmax(_AlongAxis):
    """``exp(x) / sum(exp(x))`` along the axis ``dim``. Source: ``torch.nn.Softmax``.

    Raises:
      InputError: if ``dim`` is the time axis or no axis of the clip, or for a dtype that is not
        floating.
    """

    def of(self, x: Array) -> Array:
        return jax.nn.softmax(x, axis=self.axis(x))


class Softmax2d(_Activation):
    """``exp(x) / sum(exp(x))`` along the channels of clips with one spatial axis.

    Source: ``torch.nn.Softmax2d``, which is meant for clips ``(B, C, T, S)`` only: with more axes
    it fails, and with fewer it would treat the batch as the channels.

    Raises:
      InputError: for other clips, or a dtype that is not floating.
    """

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, space=1)
        return x

    def of(self, x: Array) -> Array:
        return jax.nn.softmax(x, axis=-1)


class LogSoftmax(_AlongAxis):
    """``log(exp(x) / sum(exp(x)))`` along the axis ``dim``. Source: ``torch.nn.LogSoftmax``.

    Raises:
      InputError: if ``dim`` is the time axis or no axis of the clip, or for a dtype that is not
        floating.
    """

    def of(self, x: Array) -> Array:
        return jax.nn.log_softmax(x, axis=self.axis(x))


class GLU(_AlongAxis):
    """``a * sigmoid(b)``, where ``a`` and ``b`` are the two halves of the axis ``dim``.

    Source: ``torch.nn.GLU``; Dauphin et al., 2016, https://arxiv.org/abs/1612.08083.

    Attributes:
      dim: the axis. The default is the last axis, so clips ``(B, C, T)`` need ``dim=1``.

    Shapes:
      any, with the axis half as long.

    Raises:
      InputError: if the axis has an odd length, is the time axis or does not exist, or for a dtype
        that is not floating.
    """

    dim: int = -1

    def output_spec(self, x: Spec) -> Spec:
        super().output_spec(x)
        axis = non_temporal(self.dim, len(x.shape) + 1, "dim", self)
        axis -= axis > 2
        if x.shape[axis] % 2:
            raise InputError(
                f"GLU halves the axis dim={self.dim} of the clip, which is odd, {x.shape[axis]}, "
                f"in a step of shape {x.shape}"
            )
        return Spec((*x.shape[:axis], x.shape[axis] // 2, *x.shape[axis + 1 :]), x.dtype)

    def of(self, x: Array) -> Array:
        return jax.nn.glu(x, axis=self.axis(x))
