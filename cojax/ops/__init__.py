"""How convolutions and pools are lowered."""
