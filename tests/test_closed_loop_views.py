"A policy whose cameras a simulator calls otherwise: refused in one sentence, and played when told."
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gr00t_nb.errors import InputError
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.rollout.closed_loop import EpisodesConfig, evaluate_closed_loop


@dataclass(kw_only=True)
class Held(EpisodesConfig):
    "A policy that holds still, and looks through a camera called 'overhead'."

    @property
    def folder(self) -> Path: return Path(self.output_dir)

    def policy(self):
        groups = ["single_arm", "gripper"]
        robot = dict(
            video=ModalityConfig([0], ["overhead"]),
            state=ModalityConfig([0], groups),
            action=ModalityConfig(range(16), groups),
            language=ModalityConfig([0], ["annotation.human.task_description"]),
        )

        def get_action(observation, options=None):
            assert {*observation["video"]} == {"overhead"}
            return {g: np.repeat(observation["state"][g], 16, axis=1) for g in groups}, {}

        return SimpleNamespace(get_modality_config=lambda: robot, get_action=get_action, reset=lambda options=None: {})

    def options(self, policy, episode): return lambda tick: {}
    def check(self): pass


def held(tmp_path, **more):
    return Held(output_dir=str(tmp_path), episodes=1, max_steps=3, videos=0, baselines=False, **more)


def test_a_refusal_shows_no_empty_bar(tmp_path, capsys):
    with pytest.raises(InputError, match="--views overhead=front"): evaluate_closed_loop(held(tmp_path))
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="The robot has no camera 'top'"):
        evaluate_closed_loop(held(tmp_path, views=["overhead=top"]))


def test_the_pair_that_it_names_is_taken(tmp_path, capsys):
    result = evaluate_closed_loop(held(tmp_path, views=["overhead=front"]))
    assert len(result.policy) == 1 and result.policy[0].reason == "step limit"
    assert "episodes: 100%" in capsys.readouterr().err
