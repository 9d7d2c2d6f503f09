"""Every test runs on the CPU, unless JAX_PLATFORMS says otherwise."""

import gc
import importlib.metadata
import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of the time is compilation, and half of that is XLA's newer generator of code for fusions:
# twelve cases of the laws took 30 s of CPU with it, 14 s without. XLA refuses flags that it does
# not know, so that this is for the versions it was tried with.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

# Tracing makes so many objects that 8 % of the time would go into looking for cycles of them.
gc.set_threshold(200_000, 20, 100)


def pytest_collection_finish():
    gc.freeze()  # What has been imported and collected stays.


@pytest.fixture(scope="module")
def quick_compilation():
    """For networks so large that most of the time is compilation, and little of it computation."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def own_registrations(monkeypatch):
    """What a test registers for conversion holds for it alone."""
    from cojax.interop import convert

    monkeypatch.setattr(convert, "_registered", {})
