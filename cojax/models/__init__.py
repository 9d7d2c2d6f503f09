"""The model zoo: functions that return networks made of cojax's layers, and their weights."""

from cojax.models.formats import Format
from cojax.models.graph import KINETICS, NTU_RGBD, Graph
from cojax.models.oadtr import cooadtr
from cojax.models.pretrained import Pretrained, load_pretrained
from cojax.models.resnet import coi3d, coslow
from cojax.models.skeleton import coa_gcn, cos_tr, cost_gcn
from cojax.models.x3d import cox3d, cox3d_l, cox3d_m, cox3d_s

__all__ = [
    "KINETICS",
    "NTU_RGBD",
    "Format",
    "Graph",
    "Pretrained",
    "coa_gcn",
    "coi3d",
    "cooadtr",
    "cos_tr",
    "coslow",
    "cost_gcn",
    "cox3d",
    "cox3d_l",
    "cox3d_m",
    "cox3d_s",
    "load_pretrained",
]
