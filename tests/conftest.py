"""Every test runs on the CPU, with as many threads as a worker's share of it."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
