"""Streams on the host: jitted, donated stepping, saved and resumed."""
