"""Gymnasium environments of a run: `FormulationVectorEnv`, of which `FormulationEnv` is one.


The action is hybrid: a material, its continuous formulation as shares of the way between that
material's own bounds, and of each set of columns of which exactly one is 1 which that is. Every
action is inside of the space, so a policy cannot be rewarded for what no row of the table is near.
An episode is one step. The vector environment begins the next episodes in the same step
(`AutoresetMode.SAME_STEP`): all its rows are one pass through the network.

Axes: n environments, O observed numbers, V variables, G choices.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float32, Float64, Int64

from fusionnet.config.reward import Unseen
from fusionnet.design.space import Designs, FormulationSpace
from fusionnet.rl.problem import DesignProblem, design_problem
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.rewards import Rewards

Action = Mapping[str, Any]
Info = dict[str, Any]


def action_space(space: FormulationSpace) -> spaces.Space[Any]:
    """Return the actions: `material`, and where there are any `values` (V shares) and `choices`."""
    parts: dict[str, spaces.Space[Any]] = {"material": spaces.Discrete(space.num_materials)}
    if space.variables:
        parts["values"] = spaces.Box(0.0, 1.0, (len(space.variables),), np.float32)
    if space.choices:
        parts["choices"] = spaces.MultiDiscrete(space.num_choices)
    return spaces.Dict(parts)


def designs_of(space: FormulationSpace, actions: Action) -> Designs:
    """Return the designs that a batch of actions stands for."""
    material = np.asarray(actions["material"], dtype=np.int64)
    shares = np.asarray(actions.get("values", np.empty((len(material), 0))), dtype=np.float64)
    choice = np.asarray(actions.get("choices", np.empty((len(material), 0))), dtype=np.int64)
    return Designs(material, space.values_at(material, shares), choice)


class FormulationVectorEnv(VectorEnv[Float32[np.ndarray, "n O"], Action, np.ndarray]):
    """n patients at a time, drawn anew for every step.

    `infos` of a step has in `final_info` what was designed for whom and what it is worth: `patient`
    (its number in `problem.names`), `reward_<task>`, `penalty_<task>`, `doubt`, and unless unseen
    strings are allowed `known` and `outside`. Options of `reset`: `patients`, n names; drawn where
    they are unset.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(self, problem: DesignProblem, num_envs: int = 256) -> None:
        self.problem, self.num_envs = problem, num_envs
        width = problem.observations.shape[1]
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.single_action_space = action_space(problem.space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._patient: Int64[np.ndarray, " n"] | None = None
        self._all = np.ones(num_envs, dtype=np.bool_)

    @classmethod
    def of_run(
        cls,
        model: RewardModel,
        table: Any = None,
        num_envs: int = 256,
        patients: Sequence[str] | None = None,
        pessimism: float | None = None,
        unseen: Unseen | None = None,
    ) -> "FormulationVectorEnv":
        """Return the environment of a run's patients, see `design_problem`."""
        return cls(design_problem(model, table, patients, pessimism, unseen), num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32[np.ndarray, "n O"], Info]:
        """Return the first n patients."""
        super().reset(seed=seed)
        wanted = (options or {}).get("patients")
        if wanted is None:
            return self._next_patients(), {}
        if len(wanted) != self.num_envs:
            raise InvalidAction(f"{len(wanted)} patients for {self.num_envs} environments")
        self._patient = np.array([self.problem.index_of(name) for name in wanted], dtype=np.int64)
        return self.problem.observations[self._patient], {}

    def step(
        self, actions: Action
    ) -> tuple[
        Float32[np.ndarray, "n O"],
        Float64[np.ndarray, " n"],
        Bool[np.ndarray, " n"],
        Bool[np.ndarray, " n"],
        Info,
    ]:
        """Return the next patients, and what the designs for the ones before are worth."""
        patient = self._patient
        if patient is None:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        if not self.action_space.contains(actions):
            raise InvalidAction(f"actions must be of {self.action_space}")
        rewards = self.problem.rewards(patient, designs_of(self.problem.space, actions))
        infos = {
            "final_obs": _objects(self.problem.observations[patient]),
            "_final_obs": self._all,
            "final_info": self._told(patient, rewards),
            "_final_info": self._all,
        }
        total = rewards.total.double().cpu().numpy()
        return self._next_patients(), total, self._all.copy(), ~self._all, infos

    def _next_patients(self) -> Float32[np.ndarray, "n O"]:
        self._patient = self.np_random.integers(self.problem.num_patients, size=self.num_envs)
        return self.problem.observations[self._patient]

    def _told(self, patient: Int64[np.ndarray, " n"], rewards: Rewards) -> Info:
        """Return what is told of a step that has been taken."""
        told: Info = {"patient": patient, **parts_of(rewards)}
        return told | {f"_{name}": self._all for name in list(told)}


class FormulationEnv(gymnasium.Env[Float32[np.ndarray, " O"], Action]):
    """One patient at a time. Options of `reset`: `patient`, a name; drawn where it is unset."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, problem: DesignProblem) -> None:
        self.problem = problem
        width = problem.observations.shape[1]
        self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space = action_space(problem.space)
        self._patient: int | None = None

    @classmethod
    def of_run(
        cls,
        model: RewardModel,
        table: Any = None,
        patients: Sequence[str] | None = None,
        pessimism: float | None = None,
        unseen: Unseen | None = None,
    ) -> "FormulationEnv":
        """Return the environment of a run's patients, see `design_problem`."""
        return cls(design_problem(model, table, patients, pessimism, unseen))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32[np.ndarray, " O"], Info]:
        """Return a patient's features, and its name in the info."""
        super().reset(seed=seed)
        wanted = (options or {}).get("patient")
        if wanted is None:
            self._patient = int(self.np_random.integers(self.problem.num_patients))
        else:
            self._patient = self.problem.index_of(wanted)
        return self._observed(), {"patient": self.problem.names[self._patient]}

    def step(self, action: Action) -> tuple[Float32[np.ndarray, " O"], float, bool, bool, Info]:
        """Return what the design is worth, in the info with its parts; the episode ends."""
        if self._patient is None:
            raise gymnasium.error.ResetNeeded("call reset before each step")
        if not self.action_space.contains(action):
            raise InvalidAction(f"an action must be of {self.action_space}; got {action!r:.400}")
        patient = np.array([self._patient])
        one = {name: np.asarray(part)[None] for name, part in action.items()}
        rewards = self.problem.rewards(patient, designs_of(self.problem.space, one))
        info: Info = {"patient": self.problem.names[self._patient]}
        info |= {name: part[0].item() for name, part in parts_of(rewards).items()}
        return self._observed(), float(rewards.total[0]), True, False, info

    def _observed(self) -> Float32[np.ndarray, " O"]:
        assert self._patient is not None, "both callers have one"
        return self.problem.observations[self._patient].copy()


def parts_of(rewards: Rewards) -> dict[str, np.ndarray]:
    """Return what is told of B rewards, by name, each [B].

    `reward_<task>`, `penalty_<task>` and `doubt`, and whether training saw the design's strings and
    categories (`known`) and its numbers lie beyond the train rows' (`outside`) where somebody
    looked.
    """
    columns = (*rewards.terms.unbind(1), *rewards.penalties.unbind(1), rewards.doubt)
    names = [*rewards.names, "doubt"]
    told = {name: part.double().cpu().numpy() for name, part in zip(names, columns, strict=True)}
    for name, flags in (("known", rewards.known), ("outside", rewards.outside)):
        if flags is not None:
            told[name] = flags.cpu().numpy()
    return told


def _objects(rows: Float32[np.ndarray, "n O"]) -> np.ndarray:
    """Return rows as Gymnasium tells of last observations: an array of n arrays."""
    listed = np.empty(len(rows), dtype=object)
    listed[:] = list(rows)
    return listed
