"""Positional encodings for endless streams."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import normal
from jax.typing import DTypeLike

from cojax.buffers import Counter
from cojax.checks import require_step
from cojax.chunks import Chunk
from cojax.frames import Signal, Spec, State
from cojax.layers.arguments import require_positive
from cojax.module import CoModule


class RecyclingPositionalEncoding(CoModule):
    """Adds a positional encoding to every token, starting again with the first after the last.

    Tokens that are attended over together must have different encodings: for attention over ``n``
    tokens, use ``num_embeds >= n``. With ``2 n - 1``, any two encodings that share a window are
    always the same distance apart.

    Source: ``continual.RecyclingPositionalEncoding``; Hedegaard et al., "Continual Transformers:
    Redundancy-Free Attention for Online Inference", https://arxiv.org/abs/2201.06268. The static
    encoding is that of Ma et al., "Learning to Iteratively Solve Routing Problems with Dual-Aspect
    Collaborative Transformer", https://arxiv.org/abs/2110.02544. (In ``continual``, ``forward``
    continues where the previous call ended, and a clip has at most ``num_embeds`` steps; here,
    every clip starts with the first encoding.)

    Example::

        encode = co.RecyclingPositionalEncoding(embed_dim=32, num_embeds=15)
        variables = encode.init(jax.random.key(0), method="declare")
        assert encode.apply(variables, jnp.ones((1, 32, 40))).shape == (1, 32, 40)

    Attributes:
      embed_dim: the number of channels.
      num_embeds: the number of encodings.
      learned: whether encodings are learnt; otherwise they are fixed and cyclic.
      param_dtype: the dtype of the encodings.

    Shapes:
      clip ``(B, embed_dim, T)`` and step ``(B, embed_dim)``, kept; state ``count`` ``()``;
      variables ``params`` ``embedding`` or ``constants`` ``pattern`` ``(num_embeds, embed_dim)``.

    Raises:
      ValueError: at construction, unless ``embed_dim`` and ``num_embeds`` are positive, and there
        are at least two channels for fixed encodings.
      InputError: for an input of the wrong rank or channel count, or a dtype that is not floating.
    """

    embed_dim: int
    num_embeds: int
    learned: bool = True
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        require_positive(embed_dim=self.embed_dim, num_embeds=self.num_embeds)
        if not self.learned and self.embed_dim < 2:
            raise ValueError(f"fixed encodings need at least two channels, got {self.embed_dim=}")
        super().__post_init__()

    @property
    def _counter(self) -> Counter:
        return Counter(0, self.num_embeds)

    def setup(self) -> None:
        shape = (self.num_embeds, self.embed_dim)
        if self.learned:
            self.encodings = self.param("embedding", normal(1.0), shape, self.param_dtype)
        else:
            pattern = self.variable(
                "constants", "pattern", lambda: jnp.asarray(cyclic_encodings(*shape))
            )
            self.encodings = pattern.value.astype(self.param_dtype)

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, 0, self.embed_dim)
        return x

    def clip(self, x: Array, train: bool = False) -> Array:
        return self._encoded(x, jnp.arange(x.shape[2]))

    def fresh_state(self, x: Spec) -> State:
        return self._counter.fresh()

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        x = self._encoded(signal.clean()[:, :, None], self._counter.of(state))[:, :, 0]
        return signal.becomes(x), self._counter.advance(state, signal)

    def chunk(self, state: State, chunk: Chunk) -> tuple[Chunk, State]:
        counts = self._counter.of(state) + jnp.arange(chunk.steps) - chunk.blank
        after = self._counter.advance(state, chunk)
        return chunk.becomes(self._encoded(chunk.clean(), counts)), after

    def _encoded(self, x: Array, counts: Array | int) -> Array:
        encodings = jnp.atleast_2d(self.encodings[counts % self.num_embeds])
        return x + encodings.T.astype(x.dtype)


@functools.cache
def cyclic_encodings(num_embeds: int, embed_dim: int) -> np.ndarray:
    """Returns fixed encodings ``(num_embeds, embed_dim)``, with no jump from the last to the first.

    Every channel is a sine or cosine of a triangular phase, with periods that grow over the first
    half of the channels. Each wave is sampled evenly over whole periods and averaged over five
    neighbours, and its mean is subtracted.
    """
    half = embed_dim // 2
    periods = np.linspace(num_embeds ** (1 / half), num_embeds, half, dtype=int)
    channels = []
    for i in range(embed_dim):
        period = int(periods[min(i // 3 * 3 + 1, half - 1)])
        whole = -(-num_embeds // period) * period
        if period >= num_embeds:
            period = whole = num_embeds
        fine = np.arange(0, whole + 0.01, 0.01)
        places = fine[np.linspace(0, len(fine) - 1, num_embeds + 1, dtype=int)[:-1]]
        shift = 2 * np.pi * (half - i) / half if i > half else 0
        phase = 2 * np.pi / period * np.abs(places % (2 * period) - period) + shift
        channels.append(np.cos(phase) if i % 2 else np.sin(phase))
    waves = np.stack(channels, axis=1).astype(np.float32)
    neighbours = sum(np.roll(waves, shift, axis=0) for shift in range(-2, 3))
    return (neighbours / 5 - waves.mean(axis=0)).astype(np.float32)
