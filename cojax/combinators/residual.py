"""Residual connections."""

from cojax.combinators.parallel import BroadcastReduce
from cojax.combinators.reduce import Reduction
from cojax.layers.arguments import require_one_of
from cojax.layers.delay import Delay
from cojax.module import CoModule


def Residual(  # noqa: N802 - a module by its name in continual
    module: CoModule,
    temporal_fill: str | None = None,
    reduce: Reduction = "sum",
    residual_shrink: bool | str = False,
) -> BroadcastReduce:
    """Reduces a module's output with its input, which is delayed to match it.

    The input is child "0" and the module child "1" of a :class:`BroadcastReduce`.

    Source: ``continual.Residual``; He et al., 2015, https://arxiv.org/abs/1512.03385.

    Example::

        residual = co.Residual(co.AvgPool1d(3, stride=1), residual_shrink="lagging")
        y = residual.apply({}, jnp.arange(5.0).reshape(1, 1, 5))
        assert y.ravel().tolist() == [0 + 1, 1 + 2, 2 + 3]  # the oldest step, and the mean of three

    Args:
      module: the module, of temporal stride 1.
      temporal_fill: accepted for compatibility; no frame of the delayed input is ever filled in.
      reduce: as in :class:`Reduce`.
      residual_shrink: how the input is cropped if the module shrinks a clip (by ``c`` steps): True
        or "centered" (c/2 off both ends), "lagging" (c off the end), "leading" (c off the start, so
        that an output is combined with the newest step). Has no effect otherwise.

    Shapes:
      a stream to a stream.

    Raises:
      ValueError: if the module has a temporal stride; if it shrinks a clip and ``residual_shrink``
        is False, or "centered" while the shrinkage is odd; if it makes a clip longer.
    """
    require_one_of("temporal_fill", temporal_fill, (None, "zeros", "replicate"))
    require_one_of(
        "residual_shrink", residual_shrink, (False, True, "centered", "lagging", "leading")
    )
    timing = module.timing
    shrinks_by = timing.delay - timing.end
    if timing.stride != 1:
        raise ValueError(
            "parallel branches must share one temporal stride, but the residual's is 1 and that "
            f"of {type(module).__name__} is {timing.stride}; use BroadcastReduce with a strided "
            "branch"
        )
    if shrinks_by < 0:
        raise ValueError(f"{type(module).__name__} makes a clip {-shrinks_by} steps longer")
    if shrinks_by and not residual_shrink:
        raise ValueError(
            f"{type(module).__name__} makes a clip {shrinks_by} steps shorter; pad it, or crop the "
            "residual with residual_shrink='centered', 'lagging' or 'leading'"
        )
    if shrinks_by % 2 and residual_shrink in (True, "centered"):
        raise ValueError(
            f"{type(module).__name__} makes a clip {shrinks_by} steps shorter, which is odd, so "
            "the residual cannot be cropped alike at both ends; use 'lagging' or 'leading'"
        )
    front = {"lagging": 0, "leading": shrinks_by}.get(str(residual_shrink), shrinks_by // 2)
    crop = (front, shrinks_by - front) if shrinks_by else False
    residual = Delay(timing.delay - front if shrinks_by else timing.delay, auto_shrink=crop)
    return BroadcastReduce(residual, module, reduce=reduce)
