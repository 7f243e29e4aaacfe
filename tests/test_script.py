"The command line: scripts/finetune.py on one process and on two, its help, and what it says to bad input."
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SAMPLE = [
    "--base-model-path",
    "tiny",
    "--dataset-path",
    "data_samples/cube_to_bowl",
    "--embodiment-tag",
    "NEW_EMBODIMENT",
    "--modality-config-path",
    "data_samples/cube_to_bowl_config.py",
    "--tune-llm",
    "--tune-visual",
]


def run(*command, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(c) for c in command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def losses(folder: Path) -> dict[int, float]:
    return {
        r["step"]: r["loss"]
        for r in map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    }


def test_help_explains_every_field():
    from gr00t_nb.training.config import FinetuneConfig
    out = run(
        BIN / "torchrun", "--nproc_per_node=2", "scripts/finetune.py", "--help", COLUMNS="200"
    )
    assert out.returncode == 0, out.stderr
    for f in fields(FinetuneConfig): assert "--" + f.name.replace("_", "-") in out.stdout


def test_two_processes_train_as_one(tmp_path):
    "The same global batches, noise and augmentation: the same loss. What is left is the order of summation. Two processes may also go on where one stopped."
    common = [
        *SAMPLE,
        "--max-steps",
        20,
        "--global-batch-size",
        8,
        "--learning-rate",
        1e-3,
        "--dropout",
        0,
        "--logging-steps",
        1,
        "--save-steps",
        10,
    ]
    one = run(
        BIN / "python",
        "scripts/finetune.py",
        *common,
        "--dataloader-num-workers",
        0,
        "--output-dir",
        tmp_path / "one"
    )
    assert one.returncode == 0, one.stderr
    two = run(
        BIN / "torchrun",
        "--nproc_per_node=2",
        "scripts/finetune.py",
        *common,
        "--dataloader-num-workers",
        1,
        "--output-dir",
        tmp_path / "two"
    )
    assert two.returncode == 0, two.stderr
    a, b = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert set(a) == set(b) == set(range(1, 21))
    for step in a: assert abs(a[step] - b[step]) <= 0.01 * a[step], (step, a[step], b[step])
    assert a[20] < a[1]

    import shutil
    shutil.rmtree(tmp_path / "one" / "checkpoint-20")
    again = run(
        BIN / "torchrun",
        "--nproc_per_node=2",
        "scripts/finetune.py",
        *common,
        "--dataloader-num-workers",
        0,
        "--output-dir",
        tmp_path / "one"
    )
    assert again.returncode == 0, again.stderr
    c = losses(tmp_path / "one")
    assert {s: c[s] for s in range(1, 11)} == {s: a[s] for s in range(1, 11)}
    for step in range(11, 21):
        assert abs(a[step] - c[step]) <= 0.01 * a[step], (step, a[step], c[step])


@pytest.mark.parametrize(
    "change, words",
    [
        (["--dataset-path", "no/where"], ["no/where"]),
        (["--dataset-path", "tests"], ["tests", "meta/info.json"]),
        (["--embodiment-tag", "GR2"], ["GR2", "GR1"]),
        (["--modality-config-path", "no.py"], ["no.py"]),
        (
            ["--embodiment-tag", "OXE_DROID", "--modality-config-path", "none"],
            ["exterior_image_1_left"],
        ),
        (["--base-model-path", "no/model/here"], ["no/model/here", "tiny"]),
    ],
    ids=lambda v: v[1] if v[0].startswith("--") else "",
)
def test_bad_input_is_one_sentence(tmp_path, change, words):
    args = list(SAMPLE)
    for flag, value in zip(change[::2], change[1::2]):
        args[args.index(flag) + 1] = value if value != "none" else "None"
    out = run(BIN / "python", "scripts/finetune.py", *args, "--output-dir", tmp_path / "out")
    assert out.returncode == 2, out.stderr
    assert "Traceback" not in out.stderr and out.stderr.startswith("error: "), out.stderr
    assert len(out.stderr.strip().splitlines()) == 1, out.stderr
    for w in words: assert w in out.stderr
    assert not (tmp_path / "out").exists()


def test_indivisible_batch(tmp_path):
    out = run(
        BIN / "torchrun",
        "--nproc_per_node=2",
        "scripts/finetune.py",
        *SAMPLE,
        "--global-batch-size",
        7,
        "--output-dir",
        tmp_path / "out"
    )
    assert out.returncode != 0
    assert (
        out.stderr.count("global_batch_size is 7, which 2 processes do not divide") == 1
    ), out.stderr
    assert "Traceback" not in out.stderr.split("global_batch_size is 7")[0]
    assert not (tmp_path / "out").exists()


def test_missing_ffmpeg(tmp_path):
    "A torchcodec that finds no FFmpeg is answered with the command that installs it."
    fake = tmp_path / "torchcodec"
    fake.mkdir()
    (fake / "__init__.py").write_text(
        "raise RuntimeError('Could not load libtorchcodec. Likely causes: FFmpeg is not properly"
        " installed')"
    )
    out = run(
        BIN / "python",
        "scripts/finetune.py",
        *SAMPLE,
        "--output-dir",
        tmp_path / "out",
        PYTHONPATH=str(tmp_path)
    )
    assert out.returncode == 2, out.stderr
    assert (
        "Traceback" not in out.stderr
        and "apt-get install" in out.stderr
        and "ffmpeg" in out.stderr.lower()
    ), out.stderr


def test_without_a_bad_episode(tmp_path):
    "Two episodes cannot be used: the refusal ends with the option that leaves them out, and the run, its record, its resumption and its evaluation go without them."
    import re, shlex, shutil
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    data, out = (
        Path(shutil.copytree(ROOT / "data_samples/cube_to_bowl", tmp_path / "data")),
        tmp_path / "out",
    )
    (data / "videos/chunk-000/observation.images.front/episode_000000.mp4").unlink()
    file = data / "data/chunk-000/episode_000017.parquet"
    table = pq.read_table(file)
    rows = np.stack(table["action"].to_numpy())
    rows[5, 2] = np.nan
    pq.write_table(
        table.set_column(
            table.column_names.index("action"), "action", pa.array(list(rows), table["action"].type)
        ),
        file,
    )
    args = [
        str(data) if a.startswith("data_samples") and not a.endswith(".py") else a for a in SAMPLE
    ]
    args += [
        "--max-steps",
        4,
        "--save-steps",
        2,
        "--logging-steps",
        1,
        "--global-batch-size",
        8,
        "--dataloader-num-workers",
        0,
        "--val-fraction",
        0.1,
        "--output-dir",
        out,
    ]
    refused = run(BIN / "python", "scripts/finetune.py", *args)
    assert (
        refused.returncode == 2 and "Traceback" not in refused.stderr and not out.exists()
    ), refused.stderr
    option = shlex.split(re.search(r"(--exclude-episodes [\d ]+),", refused.stderr)[1])
    assert option == ["--exclude-episodes", "0", "17"]

    done = run(BIN / "python", "scripts/finetune.py", *args, *option)
    assert done.returncode == 0, done.stderr
    assert set(losses(out)) and all(np.isfinite(v) for v in losses(out).values())
    record = json.loads((out / "experiment_cfg/finetune.json").read_text())
    assert record["config"]["exclude_episodes"] == [0, 17] and len(record["val_episodes"]) == 4
    assert sorted(record["train_episodes"] + record["val_episodes"]) == sorted(
        {*range(40)} - {0, 17}
    )
    statistics = json.loads((out / "experiment_cfg/dataset_statistics.json").read_text())[
        "new_embodiment"
    ]
    kept = np.concatenate([
        np.stack(pq.read_table(f)["action"].to_numpy())
        for f in sorted(file.parent.glob("*.parquet"))
        if int(f.stem[-6:]) not in (0, 17)
    ])
    assert np.allclose(statistics["action"]["single_arm"]["max"], kept[:, :6].max(0))
    assert np.isfinite(statistics["relative_action"]["single_arm"]["mean"]).all()

    other = run(
        BIN / "python", "scripts/finetune.py", *args, "--no-check-data", "--exclude-episodes", 0
    )
    assert (
        other.returncode == 2 and "exclude_episodes was [0, 17], now [0]" in other.stderr
    ), other.stderr
    for wrong, words in (([40], "names episode 40"), (range(40), "all 40 episodes")):
        bad = run(
            BIN / "python",
            "scripts/finetune.py",
            *args[:-1],
            tmp_path / "none",
            "--exclude-episodes",
            *wrong
        )
        assert (
            bad.returncode == 2
            and words in bad.stderr
            and len(bad.stderr.strip().splitlines()) == 1
        ), bad.stderr

    from gr00t_nb.data.lerobot import LeRobotDataset
    from gr00t_nb.evaluation.asking import held_out_episodes
    whole, without = LeRobotDataset(data), LeRobotDataset(data, exclude_episodes=[0, 17])
    assert (
        [whole.episodes[i].index for i in held_out_episodes(out)]
        == [without.episodes[i].index for i in held_out_episodes(out, without)]
        == record["val_episodes"]
    )
