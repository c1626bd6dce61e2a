"""Imported once by the server of `forks`: what builds, trainings and ranks import.

Nothing here computes, so that a fork inherits no thread that it would have to wait for.
"""

import fusionnet.commands  # isort: skip  (before torch: how threads wait)
import gc

import filelock  # noqa: F401
import safetensors.torch  # noqa: F401
import tensorboard  # noqa: F401
import torch.distributed.run  # noqa: F401

import fusionnet.trained.reward
import fusionnet.workflow.building
import fusionnet.workflow.training  # noqa: F401

gc.freeze()  # the children's collector leaves these objects, and their pages, alone
