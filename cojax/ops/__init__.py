"""The lowering of convolutions, pools, attention and matrix products."""
