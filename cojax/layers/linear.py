"""Linear maps along one axis."""

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from cojax.checks import require_floating
from cojax.errors import InputError
from cojax.frames import Spec
from cojax.layers.arguments import require_positive
from cojax.layers.axes import non_temporal
from cojax.layers.initializers import Initializer, fan_in_uniform
from cojax.module import TimeLocal
from cojax.ops.product import product


class Linear(TimeLocal):
    """Applies a linear map along one axis: ``y = x W + b``.

    Source: ``torch.nn.Linear``; ``channel_dim`` is that of ``continual``.

    Example::

        linear = co.Linear(3, 4, channel_dim=1)
        clip = jnp.ones((1, 3, 5))
        variables = linear.init(jax.random.key(0), clip)
        assert linear.apply(variables, clip).shape == (1, 4, 5)
        frame, _ = linear.apply(variables, {}, clip[:, :, 0], method="forward_step")
        assert frame.value.shape == (1, 4)

    Attributes:
      in_features, out_features: the length of the axis before and after.
      bias: whether to add a bias.
      channel_dim: the axis, counted in the clip ``(B, C, T, *S)`` in every mode. It cannot be the
        time axis. The default is the last axis, so clips ``(B, C, T)`` need ``channel_dim=1``.
      kernel_init, bias_init: initializers; torch's by default.
      param_dtype: the dtype of the parameters. Computation is in the dtype of the input.

    Shapes:
      clip ``(B, C, T, *S)`` and step ``(B, C, *S)``, with ``in_features`` replaced by
      ``out_features`` along one axis.

    Raises:
      ValueError: at construction, unless both sizes are positive.
      InputError: if the axis has another length or is the time axis, or for a dtype that is not
        floating.
    """

    in_features: int
    out_features: int
    bias: bool = True
    channel_dim: int = -1
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        require_positive(in_features=self.in_features, out_features=self.out_features)
        super().__post_init__()

    def setup(self) -> None:
        uniform = fan_in_uniform(self.in_features)
        shape = (self.in_features, self.out_features)
        self.kernel = self.param("kernel", self.kernel_init or uniform, shape, self.param_dtype)
        if self.bias:
            self.offset = self.param(
                "bias", self.bias_init or uniform, (self.out_features,), self.param_dtype
            )

    def output_spec(self, x: Spec) -> Spec:
        require_floating(x, self)
        axis = non_temporal(self.channel_dim, len(x.shape) + 1, "channel_dim", self)
        axis -= axis > 2
        if x.shape[axis] != self.in_features:
            raise InputError(
                f"Linear expects {self.in_features} features along channel_dim={self.channel_dim} "
                f"of the clip, got {x.shape[axis]} in a step of shape {x.shape}"
            )
        return Spec((*x.shape[:axis], self.out_features, *x.shape[axis + 1 :]), x.dtype)

    def clip(self, x: Array, train: bool = False) -> Array:
        x = jnp.swapaxes(x, self.channel_dim, -1)
        y = product(x, self.kernel.astype(x.dtype))
        if self.bias:
            y = y + self.offset.astype(x.dtype)
        return jnp.swapaxes(y, self.channel_dim, -1)
