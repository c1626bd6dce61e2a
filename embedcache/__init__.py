"""Phase 1: a table whose text columns take few distinct values to cache.zarr, and exact once-per-step encoding of these values in training."""

import os

import torch

# transformers imports DeepSpeed where it is installed, which then warns on every start of a machine without accelerator.
if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
