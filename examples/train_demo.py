"""Trains the network of ``cojax demo`` on clips, and stores it as a checkpoint that torch loads.

    python examples/train_demo.py [--epochs 60] [--out activity.safetensors]

Trains on random excerpts of the training recordings, slightly scaled and with noise added, with
``forward`` and live batch statistics; then streams the training and test recordings through the
trained network. Needs optax.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cojax as co
from cojax.demo.network import activity_network
from cojax.demo.recordings import load


def loss_of(net: co.CoModule, params: Any, stats: Any, x: Any, y: Any, key: Any) -> Any:
    """The mean cross entropy, with smoothed labels, of the outputs for the excerpts."""
    opinions, updates = net.apply(
        {"params": params, "batch_stats": stats},
        x,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    targets = optax.smooth_labels(jax.nn.one_hot(y, opinions.shape[1]), 0.05)
    loss = -jnp.mean(jnp.sum(targets[:, :, None] * jnp.log(opinions + 1e-7), axis=1))
    return loss, updates["batch_stats"]


def accuracy(net: co.CoModule, variables: Any, x: Any, y: Any) -> float:
    """The fraction of recordings for which the last output of a stream is right."""
    opinions = net.apply(variables, x, method="forward_stream")
    return float(jnp.mean(jnp.argmax(opinions[:, :, -1], axis=1) == y))


def train(epochs: int, seed: int = 0) -> tuple[co.CoModule, dict[str, Any]]:
    """Trains the network of the demo, and returns it with its variables."""
    net, data = activity_network(), load("train")
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    excerpt = net.receptive_field + 12
    rng = np.random.default_rng(seed)
    keys = iter(jax.random.split(jax.random.key(seed), epochs * 4 + 1))
    variables = net.init(next(keys), method="declare")
    params, stats = variables["params"], variables["batch_stats"]
    schedule = optax.cosine_decay_schedule(2e-3, epochs * 4)
    optimizer = optax.adamw(schedule, weight_decay=1e-2)
    state = optimizer.init(params)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(params: Any, stats: Any, state: Any, x: Any, y: Any, key: Any) -> Any:
        dropout, noise, gain = jax.random.split(key, 3)
        x = x * (1 + 0.2 * jax.random.normal(gain, (x.shape[0], x.shape[1], 1)))
        x = x + 0.05 * jax.random.normal(noise, x.shape)
        compute = jax.value_and_grad(partial(loss_of, net), has_aux=True)
        (loss, stats), grads = compute(params, stats, x, y, dropout)
        changes, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, changes), stats, state, loss

    for epoch in range(epochs):
        losses = []
        for rows in np.array_split(rng.permutation(len(x)), 4):
            start = int(rng.integers(0, x.shape[2] - excerpt + 1))
            batch = x[rows, :, start : start + excerpt]
            params, stats, state, loss = update(params, stats, state, batch, y[rows], next(keys))
            losses.append(float(loss))
        if (epoch + 1) % 10 == 0 or epoch + 1 == epochs:
            print(f"epoch {epoch + 1:3}  loss {np.mean(losses):.3f}")
    return net, {"params": params, "batch_stats": stats}


def main() -> None:
    """Trains the network, tests it, and stores its variables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="activity.safetensors")
    options = parser.parse_args()
    net, variables = train(options.epochs, options.seed)
    for split in ("train", "test"):
        data = load(split)
        print(f"{split} accuracy, streamed: {accuracy(net, variables, data.x, data.y):.1%}")
    co.save_torch(options.out, net, variables)
    print(f"stored in {options.out}")


if __name__ == "__main__":
    main()
