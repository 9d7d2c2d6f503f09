"""Modules that mix the joints of skeletons, written as in the published PyTorch code.

There, persons are rows of the batch: ``(B * persons, C, T, joints)``.
"""

import math
from functools import reduce
from typing import Any

import continual
import torch
from torch import Tensor, nn

from benchmarks.peers.building import Options, in_continual, in_torch, only
from cojax.models.graph_convolution import (
    AdaptiveGraphConvolution,
    GraphConvolution,
    RowSumGraphConvolution,
)
from cojax.models.joints import JointUnit
from cojax.models.skeleton import ChannelsToJoints, JointsToChannels
from cojax.models.spatial_attention import AttentionUnit, SpatialAttention


class _GraphConvolution(nn.Module):
    def __init__(self, net: GraphConvolution):
        super().__init__()
        adjacency = torch.from_numpy(net.graph.adjacency())
        self.A = nn.Parameter(adjacency, requires_grad=False)
        self.graph_attn = nn.Parameter(torch.ones_like(adjacency))
        self.g_conv = self.convolutions(net.in_channels, net.out_channels)
        self.bn = nn.BatchNorm2d(net.out_channels)
        self.gcn_residual: nn.Module = nn.Identity()
        if net.in_channels != net.out_channels:
            self.gcn_residual = nn.Sequential(
                nn.Conv2d(net.in_channels, net.out_channels, 1), nn.BatchNorm2d(net.out_channels)
            )

    def convolutions(self, in_channels: int, out_channels: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1) for _ in self.A)

    def forward(self, x: Tensor) -> Tensor:
        convolved = [conv(y) for conv, y in zip(self.g_conv, self.connected(x), strict=True)]
        return torch.relu_(self.bn(reduce(torch.add, convolved)) + self.gcn_residual(x))

    def connected(self, x: Tensor) -> list[Tensor]:
        """The input of each joint, by partition."""
        return [x @ partition for partition in self.A * self.graph_attn]


class _AdaptiveGraphConvolution(_GraphConvolution):
    def __init__(self, net: AdaptiveGraphConvolution):
        super().__init__(net)
        self.a_conv = self.convolutions(net.in_channels, net.out_channels // 4)
        self.b_conv = self.convolutions(net.in_channels, net.out_channels // 4)

    def connected(self, x: Tensor) -> list[Tensor]:
        frames = x.transpose(1, 2)  # (N, T, C, V)
        taken = []
        for a, b, partition in zip(self.a_conv, self.b_conv, self.A + self.graph_attn, strict=True):
            queries, keys = a(x).permute(0, 2, 3, 1), b(x).transpose(1, 2)
            weights = (queries @ keys / keys.shape[2]).softmax(-2) + partition
            taken.append((frames @ weights).transpose(1, 2))
        return taken


class _RowSumGraphConvolution(_AdaptiveGraphConvolution):
    """Without the attention, which the published code computes although it has no effect."""

    def connected(self, x: Tensor) -> list[Tensor]:
        return [x * row for row in 1 + (self.A + self.graph_attn).sum(-1)]


class _SpatialAttention(nn.Module):
    def __init__(self, net: SpatialAttention):
        super().__init__()
        self.heads, self.keys, self.values = net.num_heads, net.out_channels // 4, net.out_channels
        self.drop = net.drop_connect
        self.qkv_conv = nn.Conv2d(net.in_channels, 2 * self.keys + self.values, 1)
        self.attn_out = nn.Conv2d(self.values, self.values, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, _, steps, joints = x.shape
        frames = x.transpose(1, 2).reshape(rows * steps, -1, 1, joints)
        parts = self.qkv_conv(frames).split((self.keys, self.keys, self.values), 1)
        q, k, v = (part.reshape(rows * steps, self.heads, -1, joints) for part in parts)
        weights = ((q / math.sqrt(q.shape[2])).transpose(-2, -1) @ k).softmax(-1)
        if self.training and self.drop:
            raise NotImplementedError("in training, the peer drops no connections")
        y = self.attn_out((v @ weights.transpose(-2, -1)).reshape(rows * steps, -1, 1, joints))
        return y.reshape(rows, steps, -1, joints).transpose(1, 2)


class _AttentionUnit(nn.Module):
    def __init__(self, net: AttentionUnit):
        super().__init__()
        self.A = nn.Parameter(torch.from_numpy(net.graph.adjacency()))
        self.data_bn = nn.BatchNorm1d(net.in_channels * net.graph.joints)
        self.attention_conv = _SpatialAttention(net.layers["attention_conv"])  # type: ignore[arg-type]  # made by it
        self.bn = nn.BatchNorm2d(net.out_channels)
        self.adds = net.in_channels == net.out_channels

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, steps, joints = x.shape
        y = x.transpose(2, 3).reshape(rows, channels * joints, steps)
        y = self.data_bn(y).reshape(rows, channels, joints, steps).transpose(2, 3)
        y = self.attention_conv(y)
        return torch.relu_(self.bn(y + x if self.adds else y))


class _JointsToChannels(nn.Module):
    """``(B, C, T, joints, persons)`` to ``(B, persons * joints * C, T)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 4, 3, 1, 2).flatten(1, 3)


class _ChannelsToJoints(nn.Module):
    """``(B, persons * joints * C, T)`` to ``(B * persons, C, T, joints)``."""

    def __init__(self, net: ChannelsToJoints):
        super().__init__()
        self.sizes = (net.persons, net.joints, net.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, self.sizes).permute(0, 1, 3, 4, 2).flatten(0, 1).contiguous()


_UNITS: dict[type[JointUnit], Any] = {
    GraphConvolution: _GraphConvolution,
    AdaptiveGraphConvolution: _AdaptiveGraphConvolution,
    RowSumGraphConvolution: _RowSumGraphConvolution,
    AttentionUnit: _AttentionUnit,
}


@only(in_torch, *_UNITS)
def _(net: JointUnit, options: Options) -> nn.Module:
    return _UNITS[type(net)](net)


@only(in_torch, JointsToChannels)
def _(net: JointsToChannels, options: Options) -> nn.Module:
    return _JointsToChannels()


@only(in_torch, ChannelsToJoints)
def _(net: ChannelsToJoints, options: Options) -> nn.Module:
    return _ChannelsToJoints(net)


@only(in_continual, *_UNITS, JointsToChannels, ChannelsToJoints)
def _(net: Any, options: Options) -> nn.Module:
    if isinstance(net, RowSumGraphConvolution):
        options.mends(_NO_EFFECT)
    return continual.forward_stepping(in_torch(net, options))


_NO_EFFECT = "the published code also computes attention of no effect; the peers do not"
