"""Trains networks through streams: by gradients of the scan that a stream is.

    python examples/train_streams.py [--seed 0]

On the recordings of ``cojax demo``, a convolutional network is trained twice from the same weights,
through ``forward`` and through a scan of steps; the losses are the same. A recurrent network is
trained through the scan, and once more by truncated back-propagation with an update every 25
samples, as one would train on an endless stream. All are tested on recordings that come in sample
by sample. Needs optax.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cojax as co
from cojax.demo.recordings import load

CLASSES = 4


def convolutional(channels: int = 32) -> co.Sequential:
    """Norms, a stride and residuals: an output every second sample, from the last 5.3 seconds."""

    def block() -> co.CoModule:
        conv = co.Conv1d(channels, channels, kernel_size=5)
        return co.Residual(
            co.Sequential(_norm(channels), co.ReLU(), conv), residual_shrink="centered"
        )

    return co.Sequential(
        {
            "scale": _norm(6),
            "stem": co.Conv1d(6, channels, kernel_size=5, stride=2),
            **{f"block{i}": block() for i in (1, 2, 3)},
            "pool": co.AvgPool1d(13, stride=1),
            "head": co.Linear(channels, CLASSES, channel_dim=1),
        }
    )


def recurrent(channels: int = 32) -> co.Sequential:
    """A recurrent network: an output for every sample from the fifth on, from all so far."""
    return co.Sequential(
        {
            "scale": _norm(6),
            "stem": co.Conv1d(6, channels, kernel_size=5),
            "act": co.ReLU(),
            "memory": co.LSTM(channels, channels),
            "head": co.Linear(channels, CLASSES, channel_dim=1),
        }
    )


def _norm(channels: int) -> co.BatchNorm1d:
    """A batch norm whose running statistics are the plain average of those of all batches."""
    return co.BatchNorm1d(channels, momentum=None)


def initialised(net: co.CoModule, x: Any, seed: int) -> dict[str, Any]:
    """Random parameters, and the statistics that the norms then compute from these clips.

    Training afterwards uses ``train=False``, so that the statistics stay fixed.
    """
    variables = net.init(jax.random.key(seed), method="declare")
    _, measured = net.apply(variables, x, train=True, mutable=["batch_stats"])
    return {**variables, **measured}


def errors(logits: Any, y: Any) -> Any:
    """The cross entropies ``(B, T)`` of the outputs ``(B, classes, T)``."""
    labels = jnp.broadcast_to(y[:, None], (logits.shape[0], logits.shape[2]))
    return optax.softmax_cross_entropy_with_integer_labels(jnp.moveaxis(logits, 1, 2), labels)


def train(
    net: co.CoModule, variables: Any, x: Any, y: Any, *, method: str, updates: int, rate: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Trains through "forward" or "forward_stream"; returns the variables and every update's loss.

    The outputs of ``forward_stream`` are those of ``forward``, computed by a scan of steps.
    """
    params, frozen = variables["params"], variables["batch_stats"]
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, updates))

    def loss_of(params: Any) -> Any:
        logits = net.apply({"params": params, "batch_stats": frozen}, x, method=method)
        return errors(logits, y).mean()

    @jax.jit
    def update(params: Any, moments: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params)
        changes, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, changes), moments, loss

    moments, losses = optimizer.init(params), []
    for _ in range(updates):
        params, moments, loss = update(params, moments)
        losses.append(float(loss))
    return {"params": params, "batch_stats": frozen}, np.array(losses)


def train_truncated(
    net: co.CoModule, variables: Any, x: Any, y: Any, *, chunk: int, passes: int, rate: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Trains with one update per chunk; returns the variables and the mean loss of every pass.

    The state is carried from chunk to chunk, but gradients are not: the state enters the
    differentiated function as a constant. So memory and time for an update are those of a chunk,
    however long the stream is.
    """
    params, frozen = variables["params"], variables["batch_stats"]
    starts = range(0, x.shape[2], chunk)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, passes * len(starts)))

    def loss_of(params: Any, state: Any, xs: Any) -> Any:
        variables = {"params": params, "batch_stats": frozen}
        frames, state = net.apply(variables, state, xs, method="forward_steps")
        # Outputs during warm-up do not count; it may last for the whole chunk.
        loss = jnp.sum(jnp.where(frames.valid, errors(frames.value, y).mean(axis=0), 0))
        return loss / jnp.maximum(jnp.sum(frames.valid), 1), state

    @jax.jit
    def update(params: Any, moments: Any, state: Any, xs: Any) -> Any:
        (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params, state, xs)
        changes, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, changes), moments, state, loss

    moments, losses = optimizer.init(params), np.zeros((passes, len(starts)))
    for number in range(passes):
        state = net.init_state(x[:, :, 0])
        for i, start in enumerate(starts):
            xs = x[:, :, start : start + chunk]
            params, moments, state, losses[number, i] = update(params, moments, state, xs)
    return {"params": params, "batch_stats": frozen}, losses.mean(axis=1)


def accuracy(net: co.CoModule, variables: Any, x: Any, y: Any) -> float:
    """The fraction of recordings for which the last output of a stream, by samples, is right."""
    stream = co.Stream(net, variables, x[:, :, 0])
    answers = [stream(x[:, :, t]) for t in range(x.shape[2])]
    last = next(answer for answer in reversed(answers) if answer is not None)
    return float(jnp.mean(jnp.argmax(last, axis=1) == y))


def main() -> None:
    """Trains the networks, compares and tests them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    (x, y, _), test = load("train"), load("test")
    x, y = jnp.asarray(x), jnp.asarray(y)

    net = convolutional()
    variables = initialised(net, x, seed)
    (by_clip, clip_losses), (by_scan, scan_losses) = (
        train(net, variables, x, y, method=method, updates=60, rate=1e-3)
        for method in ("forward", "forward_stream")
    )
    print("The loss of a convolutional network, trained through\nupdate   forward    a scan")
    for number, (clip, scan) in enumerate(zip(clip_losses, scan_losses, strict=True), 1):
        if number == 1 or number % 6 == 0:
            print(f"{number:6}  {clip:.6f}  {scan:.6f}")
    print(f"largest difference: {np.abs(clip_losses - scan_losses).max():.1e}")
    for found, name in ((by_clip, "forward"), (by_scan, "a scan")):
        right = accuracy(net, found, test.x, test.y)
        print(f"test accuracy, streamed, trained through {name}: {right:.1%}")

    net = recurrent()
    variables = initialised(net, x, seed)
    whole = train(net, variables, x, y, method="forward_stream", updates=120, rate=4e-3)
    cut = train_truncated(net, variables, x, y, chunk=25, passes=30, rate=4e-3)
    print("\nA recurrent network, 120 updates, trained through")
    for name, (found, losses) in {"whole recordings": whole, "chunks of 25 samples": cut}.items():
        right = accuracy(net, found, test.x, test.y)
        print(f"{name:20}  loss {losses[-1]:.3f}  test accuracy, streamed: {right:.1%}")


if __name__ == "__main__":
    main()
