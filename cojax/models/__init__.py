"""The model zoo: functions that return networks, with the names of their published weights."""

from cojax.models.graph import KINETICS, NTU_RGBD, Graph
from cojax.models.skeleton import coa_gcn, cos_tr, cost_gcn

__all__ = ["KINETICS", "NTU_RGBD", "Graph", "coa_gcn", "cos_tr", "cost_gcn"]
