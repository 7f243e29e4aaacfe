"What fine-tuning promises for every family: how a step is computed makes no difference."
import json
from pathlib import Path

import torch
from preloaded import python

from gr00t_nb.model.checkpoints import read_tensors, stored_tensors, weight_files

HERE = Path(__file__).resolve().parent
STEPS = 4  # the learning rate is zero in the first


def train(
    family, output: Path, *more, base=None, processes: int = 1, everything: bool = True
) -> dict[int, float]:
    "Fine-tunes the family's tiny model, or another base, on the sample; gives the loss of each step."
    every = [f"--{f.replace('_', '-')}" for f, v in family.flags.items() if v is False]
    command = [
        HERE / "train.py",
        *more,
        *("--base-model-path", base or family.tiny_name),
        *("--dataset-path", "data_samples/cube_to_bowl"),
        *("--embodiment-tag", "NEW_EMBODIMENT"),
        *("--modality-config-path", "data_samples/cube_to_bowl_config.py"),
        *(every if everything else []),
        *("--max-steps", STEPS, "--save-steps", STEPS // 2, "--logging-steps", 1),
        *("--global-batch-size", 4, "--learning-rate", 1e-3, "--dataloader-num-workers", 0),
        "--no-check-data",
        *("--output-dir", output),
    ]
    done = python(*command, processes=processes, timeout=300)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in log}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in weight_files(folder) for k, v in read_tensors(stored_tensors(f))}


def without_dropout(family) -> list:
    return ["--dropout", 0] if "dropout" in family.capabilities else []


def test_a_step_as_one_graph_learns_the_same(family, tmp_path):
    "With two batches to a step. Prompts are padded further: rotary angles differ by float32 rounding."
    options = ["--double", "--gradient-accumulation-steps", 2]
    plain = train(family, tmp_path / "plain", *options)
    graph = train(family, tmp_path / "graph", *options, "--step-graph")
    assert set(plain) == set(graph) == set(range(1, STEPS + 1))
    for step, loss in plain.items(): assert abs(loss - graph[step]) <= 1e-6 * loss, step
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "graph")
    for name, v in a.items():
        assert (v - b[name]).abs().max() <= 1e-6 * max(1, v.abs().max()), name
