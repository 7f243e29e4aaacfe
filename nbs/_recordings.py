"""Small data sets with the columns, cameras, rates and pauses of a recipe's robot.

A page of `nbs/recipes/` runs this file in a hidden cell, `%run ../_recordings.py`, and asks:

    dataset = recorded(folder, RECIPES["aloha"].robot)  # three short episodes

Tests use it as well. This file is not part of the package.
"""
from pathlib import Path

import numpy as np

from gr00t_nb.conversion.writer import Recording, WriterV2
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.fluxvla.column_robot import ColumnRobot
from gr00t_nb.settings.recipe import RobotOfRecipe

ROWS = 44  # of an episode: longer than the longest chunk


def moved(rows: int, width: int, seed: int) -> np.ndarray:  # float32 (rows, width)
    "Joints that swing, each in its own way."
    phase = np.random.default_rng(seed).uniform(0, 6, (2, width))
    return np.sin(np.arange(rows)[:, None] / (6 + phase[0]) + phase[1]).astype(np.float32)


def seen(rows: int, seed: int) -> np.ndarray:  # uint8 (rows, 48, 64, 3)
    "A square that wanders over a grey wall."
    frames = np.full((rows, 48, 64, 3), 90, np.uint8)
    for t in range(rows):
        x = (3 * t + 17 * seed) % 48
        frames[t, 12:28, x:x + 16] = (200, 40 * (seed % 6), 60)
    return frames


def columns_of(robot: RobotOfRecipe) -> tuple[dict[str, int], dict | None]:  # column -> width, modality.json
    "Which columns a robot's recordings have."
    if isinstance(robot, ColumnRobot):
        return {robot.state_key: robot.state_dim, robot.action_key: robot.action_dim}, None
    groups = {kind: robot.config[kind].modality_keys for kind in ("state", "action")}
    width = 2
    modality = {
        kind: {n: dict(start=i * width, end=(i + 1) * width) for i, n in enumerate(names)}
        for kind, names in groups.items()
    }
    modality["video"] = {name: dict(original_key=f"observation.images.{name}") for name in robot.cameras}
    language, = robot.config["language"].modality_keys
    modality["annotation"] = {language.removeprefix("annotation."): dict(original_key="task_index")}
    sizes = {"observation.state": width * len(groups["state"]), "action": width * len(groups["action"])}
    return sizes, modality


def recorded(folder: Path, robot: RobotOfRecipe, episodes: int = 3, rows: int = ROWS) -> LeRobotDataset:
    "A data set of a robot; where FluxVLA knows pauses, an episode has one."
    columns, modality = columns_of(robot)
    columnwise = isinstance(robot, ColumnRobot)
    cameras = robot.cameras if columnwise else [v["original_key"] for v in modality["video"].values()]
    writer = WriterV2(folder, robot.rate or 10, tasks={0: "put the cube into the bowl", 1: "static", 2: "empty"})
    for episode in range(episodes):
        tasks, said = np.zeros(rows, np.int64), ["put the cube into the bowl"]
        if columnwise:
            tasks[10:13], tasks[-4:], said = 1, 2, [*said, "static", "empty"]
        values = {c: moved(rows, w, 10 * episode + i) for i, (c, w) in enumerate(columns.items())}
        videos = {c: seen(rows, episode + 2 * i) for i, c in enumerate(cameras)}
        made = Recording(values | dict(task_index=tasks), videos, said)
        writer.add(lambda made=made: made, f"{episode}")
    return writer.finish(modality=modality)
