"""A formulation policy by PPO (Schulman et al. 2017), through Stable-Baselines3.

Stable-Baselines3 has no hybrid actions, so a policy picks levels: of each variable one of evenly
spaced shares of the way between its bounds, beside the material and the choices (a `MultiDiscrete`
space). As an episode is one step, returns are rewards and nothing is discounted.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float32, Int64
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices

from fusionnet.design.space import Designs, FormulationSpace
from fusionnet.rl.environment import Action, FormulationVectorEnv, designs_of

NUM_LEVELS = 33


def level_space(space: FormulationSpace, num_levels: int = NUM_LEVELS) -> spaces.MultiDiscrete:
    """Return the space of material, a level per variable and choices."""
    levels = [num_levels] * len(space.variables)
    return spaces.MultiDiscrete([space.num_materials, *levels, *space.num_choices])


def action_of_levels(
    space: FormulationSpace, levels: Int64[np.ndarray, "n _"], num_levels: int = NUM_LEVELS
) -> Action:
    """Return the environment's action of each row of levels."""
    end = 1 + len(space.variables)
    action: dict[str, Any] = {"material": levels[:, 0]}
    if space.variables:
        action["values"] = (levels[:, 1:end] / (num_levels - 1)).astype(np.float32)
    if space.choices:
        action["choices"] = levels[:, end:]
    return action


class LevelsVecEnv(VecEnv):
    """A `FormulationVectorEnv` as Stable-Baselines3 takes it, whose actions are levels."""

    def __init__(self, env: FormulationVectorEnv, num_levels: int = NUM_LEVELS) -> None:
        self.env, self.num_levels, self.render_mode = env, num_levels, None
        space = level_space(env.problem.space, num_levels)
        super().__init__(env.num_envs, env.single_observation_space, space)
        self._levels: Int64[np.ndarray, "n _"] | None = None

    def reset(self) -> Float32[np.ndarray, "n O"]:
        """Return the first patients; the seed is the least of those that `seed` has set."""
        observed, _ = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        return observed

    def step_async(self, actions: Int64[np.ndarray, "n _"]) -> None:
        """Keep the actions for `step_wait`: nothing runs beside."""
        self._levels = actions

    def step_wait(
        self,
    ) -> tuple[
        Float32[np.ndarray, "n O"], Float32[np.ndarray, " n"], Bool[np.ndarray, " n"], list[Any]
    ]:
        """Return the next patients and the rewards; every episode has ended."""
        assert self._levels is not None, "step_async goes before"
        action = action_of_levels(self.env.problem.space, self._levels, self.num_levels)
        observed, reward, ended, _, infos = self.env.step(action)
        told = [{"terminal_observation": last} for last in infos["final_obs"]]
        return observed, reward.astype(np.float32), ended, told

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute once per environment: all share one object."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the one object that all environments are."""
        setattr(self, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method once per environment."""
        method = getattr(self, method_name)
        return [method(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Return that no environment has a wrapper of its own."""
        return [False for _ in self._get_indices(indices)]


def train_policy(env: FormulationVectorEnv, num_steps: int, seed: int = 0, **options: Any) -> PPO:
    """Return a policy trained on `num_steps` designs.

    `options` are those of Stable-Baselines3's `PPO`, where they differ from the ones here.
    """
    rollout = max(1, 2048 // env.num_envs)
    chosen: dict[str, Any] = {
        "n_steps": rollout,
        "batch_size": min(512, rollout * env.num_envs),
        "n_epochs": 4,
        "gamma": 0.0,
        "gae_lambda": 1.0,
        "learning_rate": 3e-3,
        "ent_coef": 0.0,
        "policy_kwargs": {"net_arch": [128, 128]},
        "device": "cpu",
    }
    policy = PPO("MlpPolicy", LevelsVecEnv(env), seed=seed, **(chosen | options))
    return policy.learn(num_steps)


def designs_by(policy: PPO, env: FormulationVectorEnv, patient: Int64[np.ndarray, " P"]) -> Designs:
    """Return what a policy designs for patients of the environment's problem, by their numbers."""
    problem = env.problem
    levels, _ = policy.predict(problem.observations[patient], deterministic=True)
    return designs_of(problem.space, action_of_levels(problem.space, levels))
