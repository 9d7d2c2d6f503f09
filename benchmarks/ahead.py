"""Steps compiled for an accelerator that is not present, and what they consist of.

    python -m benchmarks.ahead [--target h200|v5e] [--batch 1 64] [--fold] [--json FILE] [NAME ...]

XLA compiles for a GPU or a TPU that is not present, given its description. For an NVIDIA H200 this
needs the packages ``jax-cuda12-plugin`` and ``jax-cuda12-pjrt``, of the same version as JAX, and
``nvidia-cuda-nvcc-cu12``; for a TPU v5e it needs ``libtpu``. Nothing is run, so nothing is timed.
But at batch 1 a step on a GPU takes about as long as it takes to start its kernels, and the
compiled step shows which memories are copied.

``kernels``: the instructions of a step that run one after the other, including those of the longer
branch of a conditional. ``copies``: how many of them only copy a whole memory of the stream.
``temporary``: the memory that a step needs besides weights, memories and frames.
"""

import argparse
import datetime
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import cojax as co
from benchmarks.harness import aligned, parsed, short
from benchmarks.networks import NETWORKS
from cojax.module import declared

# Operations that run nothing.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "copy-done"}

# An H200, in the form in which XLA describes the devices that it finds.
_H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H200"
"""


class Target(NamedTuple):
    """A kind of device to compile for.

    Attributes:
      platform: its name in lowering.
      device: makes one such device, to compile for.
      environment: the environment variables that its packages need where it is not present.
      flags: flags for XLA.
    """

    platform: str
    device: Callable[[], Any]
    environment: Mapping[str, str]
    flags: str = ""


def _h200() -> Any:
    described = topologies.get_topology_desc(
        "", platform="cuda", topology="1x1x1", target_config=_H200
    )
    return described.devices[0]


def _v5e() -> Any:
    return topologies.get_topology_desc("v5e:2x2x1", platform="tpu").devices[0]


TARGETS = {
    "h200": Target(
        "cuda",
        _h200,
        {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},  # There is no driver to ask for its version.
        # Trying out kernels would take a GPU.
        "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
    ),
    # There is no TPU host to query either.
    "v5e": Target("tpu", _v5e, {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}),
}


def step_for(net: co.CoModule, variables: Any, x: Any, target: Target, device: Any) -> Any:
    """A step compiled for a device, with its state donated, from the specs of all arrays."""
    there = SingleDeviceSharding(device)
    skip = net.timing.stride > 1

    def step(variables: Any, state: Any, x: Any) -> Any:
        return net.apply(variables, state, x, skip=skip, method="forward_step")

    jitted = jax.jit(step, donate_argnums=1, in_shardings=there, out_shardings=there)
    state = jax.eval_shape(net.init_state, x)
    traced = jitted.trace(variables, state, x)
    return traced.lower(lowering_platforms=(target.platform,)).compile()


def folded(net: co.CoModule, variables: Any) -> tuple[co.CoModule, Any]:
    """:func:`cojax.fold_batch_norm` for variables given by their specs."""
    found: list[co.CoModule] = []

    def fold(variables: Any) -> Any:
        net_without, constants = co.fold_batch_norm(net, variables)
        found.append(net_without)
        return constants

    constants = jax.eval_shape(fold, variables)
    return found[0], constants


class Instruction(NamedTuple):
    """An instruction of compiled HLO.

    Attributes:
      name: its name.
      type: the type of its result, such as ``f32[2,3]``, without the layout.
      operation: the operation, such as ``fusion``.
      branches: the names of the computations of which it runs one.
    """

    name: str
    type: str
    operation: str
    branches: tuple[str, ...]


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", re.M | re.S)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$", re.M)
_BRANCHES = {
    "conditional": re.compile(
        r"branch_computations=\{([^}]*)\}|true_computation=([^,\s]+), false_computation=([^,\s]+)"
    ),
    "call": re.compile(r"to_apply=([^,\s]+)"),
}


def instructions(hlo: str) -> list[Instruction]:
    """The instructions of a compiled module, as they run; of a conditional, the longer branch."""
    found = _COMPUTATION.findall(hlo)
    computations = {name: list(_within(body)) for _, name, body in found}
    (entry,) = (name for first, name, _ in found if first)

    def run(name: str) -> Iterator[Instruction]:
        for each in computations[name]:
            if each.branches:
                yield from max((list(run(branch)) for branch in each.branches), key=len)
            elif each.operation not in _FREE:
                yield each

    return list(run(entry))


def _within(body: str) -> Iterator[Instruction]:
    for name, kind, operation, rest in _INSTRUCTION.findall(body):
        found = _BRANCHES[operation].search(rest) if operation in _BRANCHES else None
        listed = ",".join(each for each in found.groups() if each) if found else ""
        branches = tuple(each.strip(" %") for each in listed.split(",") if each)
        yield Instruction(name, re.sub(r"\{.*?\}", "", kind), operation, branches)


def copied(hlo: str, state: Any) -> list[Instruction]:
    """The copies whose result has the shape of a memory."""
    short_names = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int32": "s32"}
    memories = {
        f"{short_names[leaf.dtype.name]}[{','.join(map(str, leaf.shape))}]"
        for leaf in jax.tree.leaves(state)
        if leaf.ndim
    }
    return [
        each for each in instructions(hlo) if each.operation == "copy" and each.type in memories
    ]


def measure(name: str, batch: int, target: Target, device: Any, fold: bool) -> dict[str, Any]:
    """The figures of a compiled step of a network."""
    network = NETWORKS[name]
    net = network.build()
    variables = declared(net)
    if fold:
        net, variables = folded(net, variables)
    x = jax.ShapeDtypeStruct((batch, *network.step), jnp.float32)
    start = time.perf_counter()
    step = step_for(net, variables, x, target, device)
    seconds = time.perf_counter() - start
    hlo = step.as_text()
    return {
        "network": name,
        "batch": batch,
        "kernels": len(instructions(hlo)),
        "copies": len(copied(hlo, jax.eval_shape(net.init_state, x))),
        "temporary_bytes": step.memory_analysis().temp_size_in_bytes,
        "compile_seconds": seconds,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the figures."""
    return aligned(
        ("network", "batch", "kernels", "copies", "temporary, MB", "compiled, s"),
        [
            (
                row["network"],
                *(str(row[name]) for name in ("batch", "kernels", "copies")),
                short(row["temporary_bytes"] / 1e6),
                short(row["compile_seconds"]),
            )
            for row in rows
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles, prints the table and writes the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--target", choices=tuple(TARGETS), default="h200")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--fold", action="store_true", help="fold batch norms")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parsed(parser, NETWORKS, arguments)
    target = TARGETS[options.target]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {target.flags}".strip()
    os.environ.update(target.environment, XLA_FLAGS=flags)
    try:
        device = target.device()
    except Exception as error:
        parser.error(f"JAX cannot compile for {options.target}, are its packages there? {error}")
    conditions = {
        "target": options.target,
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
        "fold_batch_norm": options.fold,
        "xla_flags": flags,
    }
    rows = []
    for name in options.names or NETWORKS:
        for batch in options.batch:
            rows.append(measure(name, batch, target, device, options.fold))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            if options.json:
                figures = {"conditions": conditions, "rows": rows}
                options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
