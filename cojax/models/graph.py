"""Skeletons as graphs of joints and bones."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Graph:
    """A skeleton: its joints, and the bones between them.

    Source: Yan, Xiong and Lin, "Spatial Temporal Graph Convolutional Networks for Skeleton-Based
    Action Recognition", AAAI 2018, https://arxiv.org/abs/1801.07455.

    Example::

        arm = co.models.Graph(joints=3, inward=((1, 0), (2, 1)))  # shoulder, elbow, hand
        assert arm.adjacency().shape == (3, 3, 3)

    Attributes:
      joints: the number of joints.
      inward: the bones: pairs of a joint and its neighbour nearer to the centre, counted from 0.

    Raises:
      ValueError: at construction, if a bone does not join two of these joints.
    """

    joints: int
    inward: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for bone in self.inward:
            if len(bone) != 2 or not all(0 <= joint < self.joints for joint in bone):
                raise ValueError(f"a bone joins two of the joints 0 to {self.joints - 1}: {bone=}")

    def adjacency(self) -> np.ndarray:
        """The weights of the connections between joints: ``(3, joints, joints)``, float32.

        Entry ``[i, v, w]`` is the weight of joint ``v`` in the sum for joint ``w``: ``w`` itself
        (``i = 0``), its inward neighbours (1), its outward neighbours (2). The weights of the
        inward neighbours of a joint add up to one, and so do those of its outward neighbours.
        """
        inward = np.zeros((self.joints, self.joints), np.float32)
        for joint, neighbour in self.inward:
            inward[neighbour, joint] = 1
        neighbours = [each / np.maximum(each.sum(axis=0), 1) for each in (inward, inward.T)]
        return np.stack([np.eye(self.joints, dtype=np.float32), *neighbours])


_NTU_RGBD_BONES = (  # Joints are counted from 1, as the authors do.
    *((1, 2), (2, 21), (3, 21), (4, 3)),  # spine, neck and head
    *((5, 21), (6, 5), (7, 6), (8, 7), (22, 23), (23, 8)),  # left arm and hand
    *((9, 21), (10, 9), (11, 10), (12, 11), (24, 25), (25, 12)),  # right arm and hand
    *((13, 1), (14, 13), (15, 14), (16, 15)),  # left leg
    *((17, 1), (18, 17), (19, 18), (20, 19)),  # right leg
)

NTU_RGBD = Graph(25, tuple((joint - 1, neighbour - 1) for joint, neighbour in _NTU_RGBD_BONES))

KINETICS = Graph(
    18,
    (
        *((2, 1), (3, 2), (4, 3)),  # right arm; joint 1 is the neck
        *((5, 1), (6, 5), (7, 6)),  # left arm
        *((8, 2), (9, 8), (10, 9)),  # right leg
        *((11, 5), (12, 11), (13, 12)),  # left leg
        *((0, 1), (14, 0), (15, 0), (16, 14), (17, 15)),  # nose, eyes and ears
    ),
)
