"""Spatial attention: every joint attends to all joints of its person, within a frame."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from cojax.analysis.macs import Macs, register_macs
from cojax.frames import Spec
from cojax.interop.names import RUNNING_NORM, Leaf, name_variables
from cojax.layers.arguments import require_positive, require_probability
from cojax.layers.conv import Conv2d
from cojax.layers.multihead import heads_first
from cojax.layers.norm import BatchNorm2d
from cojax.layout import channels_last, channels_second
from cojax.models.joints import JointUnit, Run, side_by_side
from cojax.module import CoModule


class SpatialAttention(JointUnit):
    """Multi-head attention among the joints of a person, within a frame.

    Queries and keys each have ``out_channels // 4`` channels over all heads, values
    ``out_channels``. In training, DropConnect hides joints from all joints of their person,
    separately for each frame and head; it needs an rng named "dropout".

    Source: Plizzari, Cannici and Matteucci, "Skeleton-based action recognition via spatial and
    temporal transformer networks", CVIU 2021, https://arxiv.org/abs/2008.07404.

    Attributes:
      num_heads: the number of heads.
      drop_connect: the probability that a joint is hidden in training.

    The other attributes, shapes and errors are those of :class:`~cojax.models.joints.JointUnit`.

    Raises:
      ValueError: at construction, if the channels cannot be split among the heads, or
        ``drop_connect`` is not a probability.
    """

    names = ("qkv_conv", "attn_out")

    num_heads: int = 8
    drop_connect: float = 0.5

    def __post_init__(self) -> None:
        require_positive(num_heads=self.num_heads)
        if self.out_channels % (4 * self.num_heads):
            raise ValueError(
                f"{self.out_channels=} must be a multiple of 4 * num_heads = {4 * self.num_heads}: "
                "queries and keys have a quarter of the channels, shared among the heads"
            )
        require_probability(drop_connect=self.drop_connect)
        super().__post_init__()

    @nn.nowrap
    def modules(self) -> dict[str, CoModule]:
        channels = self.out_channels
        return {
            "qkv_conv": Conv2d(self.in_channels, channels // 4 * 2 + channels, 1),
            "attn_out": Conv2d(channels, channels, 1),
        }

    def compute(self, x: Array, run: Run, train: bool) -> Array:
        quarter = self.out_channels // 4
        qkv = self.by_person(run("qkv_conv", x))
        q, k, v = map(self._by_head, jnp.split(qkv, (quarter, 2 * quarter), axis=-1))
        weights = jax.nn.softmax(q / math.sqrt(q.shape[-1]) @ k.mT, axis=-1)
        if train and self.drop_connect:
            weights = self._hide_joints(weights)
        y = heads_first(weights @ v)
        return run("attn_out", side_by_side(lax.collapse(y, y.ndim - 2)))

    @nn.nowrap
    def _by_head(self, x: Array) -> Array:
        """``(..., joints, C)`` as ``(..., heads, joints, C / heads)``.

        If XLA arranges the products itself, attention takes 1.2 to 2.5 times as long on a CPU.
        """
        x = x.reshape(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)
        return heads_first(x)

    def _hide_joints(self, weights: Array) -> Array:
        """The weights without those of hidden joints, rescaled to add up to one."""
        joints = (*weights.shape[:-2], 1, weights.shape[-1])
        stays = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.drop_connect, joints)
        weights = jnp.where(stays, weights, 0)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return weights / jnp.where(total > 0, total, 1)


class JointBatchNorm(BatchNorm2d):
    """A batch norm of every channel of every joint, with the persons of a frame along its space.

    Its features are in the order of the frames in memory, joint by joint, while torch has them
    channel by channel. Variables are converted when they are loaded, so that no frame needs to be.

    Attributes:
      joints: the number of joints.

    The others, shapes and errors are those of :class:`~cojax.BatchNorm2d`.
    """

    joints: int = 1


class AttentionUnit(JointUnit):
    """Spatial attention between norms, with a residual connection.

    It computes ``relu(norm(attention(joint_norm(x)) + x))``, without the sum if the channels
    change. ``joint_norm`` normalises every channel of every joint separately.

    Source: as for :class:`SpatialAttention`.

    Attributes:
      num_heads, drop_connect: as for :class:`SpatialAttention`.

    The other attributes, shapes and errors are those of :class:`~cojax.models.joints.JointUnit`.
    Variables: ``A`` in ``params``, ``(3, joints, joints)``, which has no effect: checkpoints hold
    it, and count it among the trained parameters.
    """

    names = ("data_bn", "bn", "attention_conv")

    num_heads: int = 8
    drop_connect: float = 0.5

    @nn.nowrap
    def modules(self) -> dict[str, CoModule]:
        attention = SpatialAttention(
            self.in_channels,
            self.out_channels,
            self.graph,
            num_heads=self.num_heads,
            drop_connect=self.drop_connect,
        )
        return {
            "data_bn": JointBatchNorm(
                self.in_channels * self.graph.joints, joints=self.graph.joints
            ),
            "attention_conv": attention,
            "bn": BatchNorm2d(self.out_channels),
        }

    def setup(self) -> None:
        self.adjacency = self.param("A", lambda _: jnp.asarray(self.graph.adjacency()))

    def compute(self, x: Array, run: Run, train: bool) -> Array:
        y = channels_last(run("attention_conv", self._joint_norm(x, run)))
        if self.in_channels == self.out_channels:
            y = y + channels_last(x)
        y = run("bn", channels_second(y))
        return channels_second(jax.nn.relu(channels_last(y)))

    def _joint_norm(self, x: Array, run: Run) -> Array:
        """Normalises with the channels of all joints as channels."""
        y = self.by_person(x)
        features = channels_second(lax.collapse(y, 3))
        return side_by_side(channels_last(run("data_bn", features)).reshape(y.shape))


def _names_of_joint_norm(norm: JointBatchNorm) -> tuple[Leaf, ...]:
    """The variables of a batch norm, which torch has channel by channel."""
    *by_feature, tracked = RUNNING_NORM
    order: dict[str, Any] = {
        "from_torch": lambda x: x.reshape(-1, norm.joints).T.ravel(),
        "to_torch": lambda x: x.reshape(norm.joints, -1).T.ravel(),
    }
    return (*(leaf._replace(**order) for leaf in by_feature), tracked)


name_variables(JointBatchNorm, _names_of_joint_norm)
name_variables(AttentionUnit, (Leaf("params", "A", "A"),))


@register_macs(SpatialAttention)
def _(layer: SpatialAttention, x: Spec, y: Spec) -> Macs:
    likeness, mixing = math.prod(y.shape) // 4, math.prod(y.shape)
    return Macs(matmul=layer.graph.joints * (likeness + mixing))


@register_macs(AttentionUnit)
def _(layer: AttentionUnit, x: Spec, y: Spec) -> int:
    return 0
