"""Convolutions along one axis with fewer products than outputs times taps.

The source is Mou and Duhamel, "Short-length FIR filters and their use in fast nonrecursive
filtering", IEEE Transactions on Signal Processing, 1991: the fast FIR algorithm with two phases.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from cojax.ops.windows import padded_axis
from cojax.timing import Axis


def convolve_by_phases(
    x: Array, kernel: Array, axes: tuple[Axis, Axis], convolve: Callable[..., Array]
) -> Array:
    """Convolves along the first axis, without a stride or dilation, in 3/4 of the products.

    Even and odd outputs share products. With even inputs ``e`` and odd inputs ``o``, and even taps
    ``a`` and odd taps ``b``, the even outputs are ``a e + b o = (a + b) o + a (e - o)``. The odd
    outputs see the even inputs that come next: ``a o + b e' = (a + b) o + b (e' - o)``. These are
    three convolutions of half the length with half the taps, instead of four. The rounding errors
    stay as small as those of one convolution.

    Args:
      x: ``(B, A, A', C)``.
      kernel: ``(K, K', C, C')``.
      axes: the axes ``A`` and ``A'``.
      convolve: convolves with half the taps, given the same arguments.
    """
    axis, other = axes
    taps, length = len(kernel), axis.length(x.shape[1])
    half = -(-length // 2)
    behind = 2 * (half + taps // 2) - axis.padding - x.shape[1]
    x = padded_axis(x, 1, (axis.padding, behind))
    even, odd = x[:, 0::2], x[:, 1::2]
    even_taps, odd_taps = kernel[0::2], kernel[1::2]

    def convolved(x: Array, kernel: Array) -> Array:
        x = x[:, : half + len(kernel) - 1]
        return convolve(x, kernel, (Axis(len(kernel), 1, 0), other))

    shared = convolved(odd, even_taps.at[: taps // 2].add(odd_taps))
    outputs = [
        shared + convolved(even - odd, even_taps),
        shared + convolved(even[:, 1:] - odd[:, :-1], odd_taps),
    ]
    y = jnp.stack(outputs, axis=2)
    return y.reshape(x.shape[0], 2 * half, *y.shape[3:])[:, :length]
