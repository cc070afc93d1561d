"""Image backbones as pure functions over trees of tensors, and all it takes to train them."""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    # How long an idle thread of OpenMP keeps its core busy, read when torch is imported. By itself it is 300,000, with
    # which a step beside another busy process takes six times as long: see benchmarks/README.md.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
