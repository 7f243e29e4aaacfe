"""Ask a checkpoint in a process of its own: python ask.py CHECKPOINT DATASET ANSWER.npz"""
import sys

import numpy as np
import torch
from dummy import DUMMY

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.steps import read_steps
from gr00t_nb.checkpoints.registry import register
from gr00t_nb.policy.policy import Gr00tPolicy

if __name__ == "__main__":
    checkpoint, dataset, answer = sys.argv[1:]
    torch.set_num_threads(1)
    register(DUMMY)
    policy = Gr00tPolicy("NEW_EMBODIMENT", checkpoint, device="cpu", round_inputs=False)
    steps = read_steps(LeRobotDataset(dataset), 0, [0, 20, 40], policy.get_modality_config())
    np.savez(answer, **policy.predict(steps, noise=policy.draw_noise(7)))
