"""Image backbones as pure functions over trees of tensors, and all it takes to train them."""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    # How often an idle thread of OpenMP polls before it sleeps; read when torch is imported. With the default, 300,000,
    # a step beside another busy process takes six times as long: see benchmarks/README.md.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
