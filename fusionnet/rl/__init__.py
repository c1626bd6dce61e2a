"""A trained run as the environment of reinforcement learning: a patient in, a formulation out.

Needs the extra `rl` (Gymnasium; Stable-Baselines3 for `fusionnet.rl.ppo` alone).
"""
