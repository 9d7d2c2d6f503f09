"""Layers, with the constructor arguments of ``torch.nn`` and ``continual``."""
