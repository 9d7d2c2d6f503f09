"""The networks that are measured: those of the zoo, and some small ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import cojax as co
from benchmarks import zoo
from benchmarks.peers import to_torch_nn
from benchmarks.weights import state_dict_of
from cojax.demo.network import activity_network

Build = Callable[[], co.CoModule]

# Larger steps repeat this many numbers: a prime, so that streams never repeat at the same place.
_DRAWN = 1_000_003


@dataclass(frozen=True)
class Network:
    """A network, and the inputs that it is measured on.

    Attributes:
      build: makes the network.
      step: the shape of a step, without the batch.
      regular: makes the network that is run on clips, with the same weights.
      length: the number of steps in such a clip, which gives one prediction; None if no clip
        corresponds to a stream.
      training: makes the network that is trained, without dropout.
      lesson: the shape of the clips for training, with the batch; small enough for a CPU.
      notes: notes on its steps in ``continual``.
      clip_notes: notes on its clips.
    """

    build: Build
    step: tuple[int, ...]
    regular: Build
    length: int | None
    training: Build | None = None
    lesson: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    clip_notes: tuple[str, ...] = ()

    def variables(self, net: co.CoModule, dtype: str = "float32", device: str = "cpu") -> Any:
        """Weights by a fixed rule, with statistics of norms as training would leave them.

        The statistics are those of random clips: with others, activations would grow from layer to
        layer, and rounding errors with them. A GPU takes less time to run these clips.
        """
        given = state_dict_of(net)
        if self.length is not None:
            few = max(1, min(4, 2**18 // (self.length * math.prod(self.step))))
            given = _settled(self.regular(), given, self.clip(few), device)

        def cast(leaf: jax.Array) -> jax.Array:
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        return jax.tree.map(cast, co.load_torch(net, given))

    def frame(self, batch: int, number: int) -> np.ndarray:
        """The random step with this number; every number has a different one."""
        shape = (batch, *self.step)
        drawn = min(math.prod(shape), _DRAWN)
        return np.resize(np.random.default_rng(number).standard_normal(drawn, np.float32), shape)

    def clip(self, batch: int) -> np.ndarray:
        """The random clip that the regular network is run on."""
        if self.length is None:
            raise ValueError("no clip stands for a stream of this network")
        return np.stack([self.frame(batch, t) for t in range(self.length)], 2)


def _settled(net: co.CoModule, state_dict: Any, clips: np.ndarray, device: str) -> Any:
    """The state dict, with the statistics of the clips at the input of each batch norm."""
    there = "cuda" if device == "gpu" else "cpu"
    module = to_torch_nn(net, co.load_torch(net, state_dict)).to(there)
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.train()
            layer.momentum = 1.0
    with torch.no_grad():
        module(torch.from_numpy(clips).to(there))
    return module.cpu().state_dict()


_HEAD = (
    "the classifier of the published network, Linear(channel_dim=-4), fails in continual's steps; "
    "channel_dim=1 is used, which does the same"
)
_ITSELF = (
    "clips are run by the same network; the regular one, of stride 4, needs less than half of the "
    "multiply-accumulates"
)
_SPARED = (
    "tokens are not projected for the one query that they have; the rate counts that all the same"
)
_EVERY_SECOND = "answers every second step, and the window is recomputed for these alone"


def _video(build: Callable[..., co.CoModule], size: int, length: int, **notes: Any) -> Network:
    small = size // 2

    def training() -> co.CoModule:
        return build(small, pool_size=8, dropout=0.0)

    return Network(
        build=lambda: build(size),
        step=(3, size, size),
        regular=lambda: build(size, pool_size=length),
        length=length,
        training=training,
        lesson=(2, 3, 8, small, small),
        **notes,
    )


def _skeleton(name: str, build: Callable[..., co.CoModule]) -> Network:
    undropped = {"drop_connect": 0.0} if build is co.models.cos_tr else {}
    entry = zoo.ZOO[name]
    return Network(
        build=entry.build,
        step=entry.step[1:],
        regular=entry.build,
        length=entry.length,
        training=lambda: build(num_frames=100, **undropped),
        lesson=(2, 3, 100, 25, 2),
        clip_notes=(_ITSELF,),
    )


def _oadtr(name: str, blocks: int) -> Network:
    entry = zoo.ZOO[name]
    return Network(
        build=entry.build,
        step=entry.step[1:],
        regular=entry.regular,
        length=entry.length,
        training=lambda: co.models.cooadtr(num_blocks=blocks, dropout=0.0),
        lesson=(8, 3072, 64),
        clip_notes=(_SPARED,),
    )


def _small(build: Build, channels: int, length: int | None, *notes: str) -> Network:
    return Network(build, (channels,), build, length, clip_notes=notes)


def _tcn(channels: int = 128, blocks: int = 4, classes: int = 10) -> co.Sequential:
    """Causal residual blocks of two convolutions; each adds the newest step of its input."""
    stack = {f"block{i}": _tcn_block(channels) for i in range(blocks)}
    return co.Sequential(
        {
            "stem": co.Conv1d(32, channels, 5),
            **stack,
            "head": co.Linear(channels, classes, channel_dim=1),
        }
    )


def _tcn_block(channels: int) -> co.CoModule:
    layers: dict[str, co.CoModule] = {}
    for i in (1, 2):
        layers |= {
            f"conv{i}": co.Conv1d(channels, channels, 5),
            f"norm{i}": co.BatchNorm1d(channels),
            f"relu{i}": co.ReLU(),
        }
    return co.Residual(co.Sequential(layers), residual_shrink="leading")


def _lstm() -> co.Sequential:
    return co.Sequential(co.LSTM(64, 128, num_layers=2), co.Linear(128, 10, channel_dim=1))


def _encoder() -> co.CoModule:
    return co.SingleOutputTransformerEncoderLayer(
        256, 8, 1024, sequence_len=64, single_output_forward=True
    )


NETWORKS = {
    "CoX3D-S": _video(co.models.cox3d_s, 160, 13),
    "CoX3D-M": _video(co.models.cox3d_m, 224, 16),
    "CoX3D-L": _video(co.models.cox3d_l, 312, 16),
    "CoSlow": _video(co.models.coslow, 224, 8, notes=(_HEAD,)),
    "CoI3D": _video(co.models.coi3d, 224, 8, notes=(_HEAD,), clip_notes=(_EVERY_SECOND,)),
    "CoST-GCN*": _skeleton("CoST-GCN*", co.models.cost_gcn),
    "CoA-GCN*": _skeleton("CoA-GCN*", co.models.coa_gcn),
    "CoS-TR*": _skeleton("CoS-TR*", co.models.cos_tr),
    "CoOadTR-b1": _oadtr("CoOadTR-b1", 1),
    "CoOadTR-b2": _oadtr("CoOadTR-b2", 2),
    "demo": _small(activity_network, 6, activity_network().receptive_field),
    "TCN": _small(_tcn, 32, _tcn().receptive_field),
    "LSTM": _small(_lstm, 64, None, "no window stands for a recurrent state"),
    "encoder": _small(
        _encoder,
        256,
        64,
        "torch's TransformerEncoderLayer answers all tokens of a window",
        _SPARED,
    ),
}
