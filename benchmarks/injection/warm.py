"""Everything that the commands import, imported once: their forks then start in milliseconds.

Nothing here computes, so that a fork inherits no thread that it would have to wait for.
"""

import fusionnet.commands  # isort: skip  (before torch: how threads wait)
import atexit
import gc
import weakref

import matplotlib.figure  # noqa: F401
import safetensors.torch  # noqa: F401
import sklearn.ensemble  # noqa: F401
import tensorboard.backend.event_processing.event_accumulator  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import fusionnet.evaluation.baselines
import fusionnet.train.engine
import fusionnet.trained.reward
import fusionnet.workflow.building
import fusionnet.workflow.evaluating
import fusionnet.workflow.inspecting
import fusionnet.workflow.predicting
import fusionnet.workflow.training  # noqa: F401

gc.freeze()  # the forks' collector leaves these objects, and their pages, alone
atexit.register(gc.unfreeze)  # else nanobind takes them for leaked when the process ends
for finalizer in tuple(weakref.finalize._registry):  # type: ignore[attr-defined]
    # of torch's operators: at a fork's end they would copy 9,000 pages, 30 ms
    finalizer.atexit = False
