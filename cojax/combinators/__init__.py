"""Modules composed of other modules."""
