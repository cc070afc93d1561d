"""Image backbones as pure functions over trees of tensors, and all it takes to train them."""
