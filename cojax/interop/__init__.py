"""Exchange with PyTorch, Flax and ``continual``; torch is imported only where it is needed."""
