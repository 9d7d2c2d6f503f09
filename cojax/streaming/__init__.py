"""Streams on the host: compiled steps with donated state, which can be saved and resumed."""
