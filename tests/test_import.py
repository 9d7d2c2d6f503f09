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


def test_importing_needs_no_optional_package_and_touches_no_device():
    out = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[] False"


def test_every_public_name_is_there_and_documented():
    for name in co.__all__:
        assert getattr(co, name).__doc__, name
    assert len(set(co.__all__)) == len(co.__all__)
