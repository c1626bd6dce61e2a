"""Imported once by the server of `forks`: what builds, trainings and ranks import.

Nothing here computes, so that a fork inherits no thread that it would have to wait for.
"""

import fusionnet.commands  # isort: skip  (before torch: how threads wait)
import gc
import weakref

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (compiles nothing; imports inductor)
import filelock  # noqa: F401
import peft.utils.transformers_weight_conversion  # noqa: F401
import power  # noqa: F401  (none is cut)
import safetensors.torch  # noqa: F401
import torch.distributed.run
import torch.utils.tensorboard  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import fusionnet.train.engine
import fusionnet.trained.reward
import fusionnet.workflow.building
import fusionnet.workflow.training  # noqa: F401

get_checkpoint_conversion_mapping("")  # compiles a thousand patterns at its first call

gc.freeze()  # the children's collector leaves these objects, and their pages, alone
for finalizer in tuple(weakref.finalize._registry):  # type: ignore[attr-defined]
    # of torch's operators: at a child's end they would copy 9,000 pages, 30 ms
    finalizer.atexit = False
