"""Phase 2: a cache to a trained model, and the trained model as predictor and reward.

from fusionnet import FusionModel, RewardModel

model = FusionModel(strings="smiles", target="tg").fit(frame)  # builds and trains
model.predict(frame)  # a polars or pandas frame in raw units

model = RewardModel.load("runs/stage1")  # what the commands have trained
model.predict(frame)
model.reward(frame)  # tensor [rows]
"""

from importlib import import_module
from typing import Any

# Imported when first asked for: a command's --help should not wait for transformers and PEFT.
_HOMES = {
    "FusionModel": "estimators.fusion_model",
    "FusionClassifier": "estimators.scikit",
    "FusionRegressor": "estimators.scikit",
    "RewardModel": "trained.reward",
    "cross_validate": "workflow.cross_validating",
    "Callback": "train.callbacks",
    "StopTraining": "train.callbacks",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Return a public name from the file that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fusionnet' has no attribute '{name}'")
    return getattr(import_module(f"fusionnet.{_HOMES[name]}"), name)
