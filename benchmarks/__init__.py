"""Benchmarks: cojax side by side with ``continual-inference`` and torch."""
