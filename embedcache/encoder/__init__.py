"""3. Strings to tokens to vectors [S, E]; the only room that imports transformers or PEFT.

transformers imports DeepSpeed where it is installed, which then warns on every start of a machine
without accelerator; so it is told before either is imported.
"""

import os

import torch

if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
