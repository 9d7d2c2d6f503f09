"""What importing the package costs."""

import subprocess
import sys

import cojax as co

PROBE = """
import sys
import cojax
import jax
optional = {"torch", "safetensors", "matplotlib", "optax", "continual", "chex", "pytest", "av"}
print(sorted(optional & set(sys.modules)), jax._src.xla_bridge.backends_are_initialized())
"""


CONVERSION = """
import sys
import flax.linen as nn
import jax.numpy as jnp
import cojax
variables = {"params": {"layers_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}}
net, _ = cojax.continual(nn.Sequential([nn.Dense(3), nn.relu]), variables)
print(net.order, "torch" in sys.modules)
"""


def test_flax_modules_are_converted_without_torch():
    out = subprocess.run(
        [sys.executable, "-c", CONVERSION], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "('0', '1') False"


def test_importing_needs_no_optional_package_and_touches_no_device():
    out = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[] False"


def test_every_public_name_is_there_and_documented():
    for name in co.__all__:
        documented = getattr(co, name).__doc__
        assert documented, name
        # Flax documents a module by its fields where it has no words of its own.
        assert not documented.startswith(f"{name}("), name
    assert len(set(co.__all__)) == len(co.__all__)
