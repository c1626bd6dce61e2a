"""Phase 2: a cache to a trained model, and the trained model as predictor and reward.

from fusionnet import RewardModel reward = RewardModel.load("runs/stage1").reward(frame)        #
polars or pandas frame in raw units -> tensor [rows]
"""

from fusionnet.reward import RewardModel

__all__ = ["RewardModel"]
