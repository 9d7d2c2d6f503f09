"""The model zoo: functions that return networks made of cojax's layers, and their weights."""

from cojax.models.pretrained import Format, Pretrained, load_pretrained
from cojax.models.resnet import coi3d, coslow
from cojax.models.x3d import cox3d, cox3d_l, cox3d_m, cox3d_s

__all__ = [
    "Format",
    "Pretrained",
    "coi3d",
    "coslow",
    "cox3d",
    "cox3d_l",
    "cox3d_m",
    "cox3d_s",
    "load_pretrained",
]
