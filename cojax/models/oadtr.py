"""CoOadTR: recognises the current action from the features of the last steps of a video."""

from cojax.combinators.sequential import Sequential
from cojax.combinators.transformer import TransformerEncoder, TransformerEncoderLayerFactory
from cojax.layers.arguments import require_positive
from cojax.layers.dropout import Dropout
from cojax.layers.linear import Linear
from cojax.layers.norm import LayerNorm
from cojax.layers.positional import RecyclingPositionalEncoding


def cooadtr(
    num_features: int = 3072,
    num_classes: int = 22,
    num_blocks: int = 1,
    *,
    sequence_len: int = 64,
    num_encodings: int | None = None,
    learned_encodings: bool = True,
    embed_dim: int = 1024,
    num_heads: int = 8,
    dim_feedforward: int = 1024,
    dropout: float = 0.1,
) -> Sequential:
    """CoOadTR: a transformer encoder over the last ``sequence_len`` steps of a stream of features.

    | num_blocks | num_features | parameters | receptive field | delay | padding | stride |
    |------------|--------------|------------|-----------------|-------|---------|--------|
    | 1          | 3072         | 9,598,998  | 64              | 63    | 0       | 1      |
    | 1          | 4096         | 10,647,574 | 64              | 63    | 0       | 1      |
    | 2          | 3072         | 15,896,598 | 64              | 63    | 0       | 1      |
    | 2          | 4096         | 16,945,174 | 64              | 63    | 0       | 1      |

    With ``learned_encodings=False`` there are 130,048 fewer parameters.

    Position encodings advance along a stream, and also in ``forward``: output ``k`` of a clip is
    that of the window whose first step has encoding ``k % num_encodings``, as in a stream that
    began with the clip. A window that is cut out and processed alone starts at encoding 0, so its
    output differs slightly. (In the published network, ``forward`` takes one window, and the
    encoding that it starts at advances by one with every call.)

    Source: Wang et al., "OadTR: Online Action Detection with Transformers", ICCV 2021,
    https://arxiv.org/abs/2106.11149; Hedegaard, Bakhtiarnia and Iosifidis, "Continual Transformers:
    Redundancy-Free Attention for Online Inference", ICLR 2023, https://arxiv.org/abs/2201.06268.
    :func:`load_pretrained` loads checkpoints of the latter.

    Example::

        net = co.models.cooadtr(num_blocks=2)
        assert (net.receptive_field, net.delay) == (64, 63)

    Args:
      num_features: the number of features of a step: 3072 for those of ActivityNet and 4096 for
        those of Kinetics, each a concatenation of image features and optical-flow features.
      num_classes: the number of classes.
      num_blocks: the number of blocks of the encoder: 1 for CoOadTR-b1, 2 for CoOadTR-b2.
      sequence_len: the number of steps that attention sees.
      num_encodings: the number of position encodings; by default ``2 * sequence_len - 1``, with
        which the encodings of any two steps of a window determine their distance.
      learned_encodings: whether these are learnt; otherwise they are fixed and cyclic.
      embed_dim: the number of channels of the encoder.
      num_heads: the number of attention heads that these are split into.
      dim_feedforward: the number of hidden channels of the encoder's feed-forward network.
      dropout: the dropout probability in training, after the encodings and in the encoder.

    Returns:
      A network from clips ``(B, num_features, T)`` to ``(B, num_classes, T - sequence_len + 1)``,
      and from steps ``(B, num_features)`` to ``(B, num_classes)``: logits.

    Raises:
      ValueError: for sizes that are not positive, or not compatible.
    """
    require_positive(num_blocks=num_blocks)
    if num_encodings is None:
        num_encodings = 2 * sequence_len - 1
    if num_encodings < sequence_len:
        raise ValueError(
            f"{num_encodings=} must be at least {sequence_len=}: no two steps that attention sees "
            "may have the same"
        )
    block = TransformerEncoderLayerFactory(
        embed_dim,
        num_heads,
        dim_feedforward,
        dropout,
        activation="gelu",
        sequence_len=sequence_len,
        attention_bias=False,
    )
    return Sequential(
        Linear(num_features, embed_dim, channel_dim=1),
        RecyclingPositionalEncoding(embed_dim, num_encodings, learned_encodings),
        Dropout(dropout),
        TransformerEncoder(block, num_blocks),
        LayerNorm(embed_dim, channel_dim=1),
        Linear(embed_dim, num_classes, channel_dim=1),
    )
