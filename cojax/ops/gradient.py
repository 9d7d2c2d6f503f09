"""What gradients keep of what was computed."""

import functools

import jax

# A function whose gradient keeps its arguments, and computes anew what it needs of what was made of
# them. Else that is kept, which within a scan is written in every step: nine shifted copies of what
# a depthwise 3x3 sees.
recomputed = functools.partial(jax.checkpoint, prevent_cse=False)
