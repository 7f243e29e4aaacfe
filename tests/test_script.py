"The command line: scripts/finetune.py on one process and on two, its help, and what it says to bad input."
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preloaded import python

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.evaluation.asking import held_out_episodes
from gr00t_nb.settings.config import FinetuneConfig

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = [
    *("--base-model-path", "tiny"),
    *("--dataset-path", "data_samples/cube_to_bowl"),
    *("--embodiment-tag", "NEW_EMBODIMENT"),
    *("--modality-config-path", "data_samples/cube_to_bowl_config.py"),
    "--tune-llm",
    "--tune-visual",
]


def finetune(*args, **how) -> subprocess.CompletedProcess:
    return python("scripts/finetune.py", *args, **how)


def succeeds(*args, **how):
    done = finetune(*args, **how)
    assert done.returncode == 0, done.stderr


def refusal(*args, **how) -> str:
    "The one sentence with which the script refuses."
    done = finetune(*args, **how)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.startswith("error: "), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def losses(folder: Path) -> dict[int, float]:
    log = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {r["step"]: r["loss"] for r in log}


def test_help_explains_every_field():
    out = finetune("--help", processes=2, COLUMNS="200")
    assert out.returncode == 0, out.stderr
    for f in fields(FinetuneConfig): assert "--" + f.name.replace("_", "-") in out.stdout


def test_two_processes_train_as_one(tmp_path):
    "The same loss, but for the order of summation, with an idea; two processes go on where one stopped."
    (tmp_path / "idea.py").write_text(
        'learning_rates = {"action_head.action_decoder.*": 2}\n'
        'def loss(outputs, batch): return 2 * outputs["action_loss"].sum() / outputs["counted"]\n'
        'def images(image, rng): return image // rng.integers(1, 3, dtype=image.dtype)\n'
    )
    common = [
        *SAMPLE,
        *("--hooks", tmp_path / "idea.py"),
        *("--max-steps", 8, "--global-batch-size", 8, "--learning-rate", 1e-3, "--dropout", 0),
        *("--logging-steps", 1, "--save-steps", 4),
    ]
    def train(name: str, workers: int, **how) -> dict[int, float]:
        more = ["--dataloader-num-workers", workers, "--output-dir", tmp_path / name]
        succeeds(*common, *more, **how)
        return losses(tmp_path / name)

    a, b = train("one", 0), train("two", 1, processes=2)
    assert set(a) == set(b) == set(range(1, 9))
    for step in a: assert abs(a[step] - b[step]) <= 0.01 * a[step], (step, a[step], b[step])
    assert a[8] < 0.8 * a[1]

    shutil.rmtree(tmp_path / "one" / "checkpoint-8")
    c = train("one", 0, processes=2)
    assert {s: c[s] for s in range(1, 5)} == {s: a[s] for s in range(1, 5)}
    for step in range(5, 9):
        assert abs(a[step] - c[step]) <= 0.01 * a[step], (step, a[step], c[step])


@pytest.mark.parametrize(
    "change, words",
    [
        (["--dataset-path", "no/where"], ["no/where"]),
        (["--dataset-path", "tests"], ["tests", "meta/info.json"]),
        (["--embodiment-tag", "GR2"], ["GR2", "GR1"]),
        (["--modality-config-path", "no.py"], ["no.py"]),
        (
            ["--embodiment-tag", "OXE_DROID", "--modality-config-path", "None"],
            ["exterior_image_1_left"],
        ),
        (["--base-model-path", "no/model/here"], ["no/model/here", "tiny"]),
    ],
    ids=lambda v: v[1] if v[0].startswith("--") else "",
)
def test_bad_input_is_one_sentence(tmp_path, change, words):
    args = list(SAMPLE)
    for flag, value in zip(change[::2], change[1::2]): args[args.index(flag) + 1] = value
    said = refusal(*args, "--output-dir", tmp_path / "out")
    for w in words: assert w in said
    assert not (tmp_path / "out").exists()


def test_indivisible_batch(tmp_path):
    odd = ["--global-batch-size", 7, "--output-dir", tmp_path / "out"]
    out = finetune(*SAMPLE, *odd, processes=2)
    words = "global_batch_size is 7, which 2 processes do not divide"
    assert out.returncode != 0
    assert out.stderr.count(words) == 1, out.stderr
    assert "Traceback" not in out.stderr.split("global_batch_size is 7")[0]
    assert not (tmp_path / "out").exists()


def test_what_one_process_alone_finds(tmp_path):
    "A file that differs on one node: its process says so for all, before anything is loaded."
    robot = tmp_path / "robot.py"
    robot.write_text(
        "import os\n"
        "source = open('data_samples/cube_to_bowl_config.py').read()\n"
        "if os.environ['RANK'] == '1': source = source.replace('NEW_EMBODIMENT)', 'OXE_DROID)')\n"
        "exec(source)\n"
    )
    told = ["--modality-config-path", robot, "--global-batch-size", 4, "--output-dir", tmp_path / "out"]
    out = finetune(*SAMPLE, *told, processes=2)
    found = [line for line in out.stderr.splitlines() if line.startswith("error:")]
    assert len(found) == 1, out.stderr
    assert "Process 1 on " in found[0] and "registers oxe_droid" in found[0], found
    assert out.returncode != 0 and not (tmp_path / "out").exists()


def instead_of_torchcodec(folder: Path):
    "From now on torchcodec is what this folder has."
    for name in [m for m in sys.modules if m.partition(".")[0] == "torchcodec"]: del sys.modules[name]
    sys.path.insert(0, str(folder))


def test_missing_ffmpeg(tmp_path):
    "A torchcodec that finds no FFmpeg is answered with the command that installs it."
    fake = tmp_path / "torchcodec"
    fake.mkdir()
    why = "Could not load libtorchcodec. Likely causes: FFmpeg is not properly installed"
    (fake / "__init__.py").write_text(f"raise RuntimeError({why!r})")
    first = partial(instead_of_torchcodec, tmp_path)
    out = finetune(*SAMPLE, "--output-dir", tmp_path / "out", first=first)
    assert out.returncode == 2 and "Traceback" not in out.stderr, out.stderr
    assert "apt-get install" in out.stderr and "ffmpeg" in out.stderr.lower(), out.stderr


# ---------------------------------------------------------------- two episodes cannot be used
BAD = [0, 17]  # a video is missing, a number is none
KEPT = sorted({*range(40)} - {*BAD})


@pytest.fixture
def data(tmp_path) -> Path:
    "The sample, with the two bad episodes."
    data = Path(shutil.copytree(ROOT / "data_samples/cube_to_bowl", tmp_path / "data"))
    (data / "videos/chunk-000/observation.images.front/episode_000000.mp4").unlink()
    file = data / "data/chunk-000/episode_000017.parquet"
    table = pq.read_table(file)
    rows = np.stack(table["action"].to_numpy())
    rows[5, 2] = np.nan
    column = pa.array(list(rows), table["action"].type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), file)
    return data


def check_record(data: Path, out: Path):
    "The record, the statistics and the later evaluation are those of the other episodes."
    record = json.loads((out / "experiment_cfg/finetune.json").read_text())
    assert record["config"]["exclude_episodes"] == BAD and len(record["val_episodes"]) == 4
    assert sorted(record["train_episodes"] + record["val_episodes"]) == KEPT
    text = (out / "experiment_cfg/dataset_statistics.json").read_text()
    statistics = json.loads(text)["new_embodiment"]
    files = [data / f"data/chunk-000/episode_{i:06}.parquet" for i in KEPT]
    actions = np.concatenate([np.stack(pq.read_table(f)["action"].to_numpy()) for f in files])
    assert np.allclose(statistics["action"]["single_arm"]["max"], actions[:, :6].max(0))
    assert np.isfinite(statistics["relative_action"]["single_arm"]["mean"]).all()
    whole, without = LeRobotDataset(data), LeRobotDataset(data, exclude_episodes=BAD)
    held = [whole.episodes[i].index for i in held_out_episodes(out)]
    again = [without.episodes[i].index for i in held_out_episodes(out, without)]
    assert held == again == record["val_episodes"]


def test_without_a_bad_episode(data, tmp_path):
    "The refusal ends with the option that leaves them out, and everything then goes without them."
    out = tmp_path / "out"
    args = [str(data) if a == "data_samples/cube_to_bowl" else a for a in SAMPLE]
    args += ["--max-steps", 4, "--save-steps", 2, "--logging-steps", 1, "--global-batch-size", 8]
    args += ["--dataloader-num-workers", 0, "--val-fraction", 0.1, "--output-dir"]
    refused = finetune(*args, out)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
    assert not out.exists()
    option = shlex.split(re.search(r"(--exclude-episodes [\d ]+),", refused.stderr)[1])
    assert option == ["--exclude-episodes", "0", "17"]

    succeeds(*args, out, *option)
    assert losses(out) and all(np.isfinite(v) for v in losses(out).values())
    check_record(data, out)
    other = finetune(*args, out, "--no-check-data", "--exclude-episodes", 0)
    assert other.returncode == 2, other.stderr
    assert "exclude_episodes was [0, 17], now [0]" in other.stderr, other.stderr
    for wrong, words in (([40], "names episode 40"), (range(40), "all 40 episodes")):
        assert words in refusal(*args, tmp_path / "none", "--exclude-episodes", *wrong)
