"""The trained policy that notebooks look at: the demo's where it lies, else one trained for all of them.

A notebook runs this file in a hidden cell, `%run ../_shared_policy.py`, and asks:

    run = shared_policy()                                # folder of a finished run, not to be written into
    policy = Gr00tPolicy("NEW_EMBODIMENT", run, device="cpu")
    early, *_, late = sorted(run.glob("checkpoint-*"))   # at least two checkpoints, the first and the last

The run is fine-tuned from tiny-cubes on data_samples/cube_to_bowl as `make demo` does it, with the
same four episodes held out, for a fifth of its steps. This file is not part of the package.
"""
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

SHARED_FLAGS = (
    "--base-model-path tiny-cubes --embodiment-tag NEW_EMBODIMENT"
    " --dataset-path data_samples/cube_to_bowl"
    " --modality-config-path data_samples/cube_to_bowl_config.py --tune-llm --tune-visual"
    " --val-fraction 0.1 --global-batch-size 32 --max-steps 40 --learning-rate 1e-4"
    " --dataloader-num-workers 0 --frame-cache --save-steps 20 --logging-steps 5"
)  # 48 seconds of a core; 60 steps from random weights took 59
NOT_TRAINING = ("_modidx.py", "evaluation", "serving", "robots", "ros", "simulators", "rollout", "viz")


def _finished(run: Path) -> bool:
    return (run / "model.safetensors").exists() and (run / "experiment_cfg/finetune.json").exists()


def _sources_key(root: Path) -> str:
    "A name for what the training does: it changes with the flags and with the sources that training uses."
    package = root / "gr00t_nb"
    floor = lambda file: file.relative_to(package).parts[0]
    matters = (".py", ".json", ".safetensors")  # the base that comes with the package is in it
    found = [f for f in package.rglob("*") if f.suffix in matters]
    files = [f for f in found if floor(f) not in NOT_TRAINING]
    digest = hashlib.sha256(SHARED_FLAGS.encode())
    for f in sorted([*files, root / "data_samples/cube_to_bowl_config.py"]):
        digest.update(str(f.relative_to(root)).encode() + f.read_bytes())
    return digest.hexdigest()[:12]


def shared_policy(
    demo: bool = True,  # take the policy of `make demo` where there is one
    root: Path = Path(__file__).resolve().parents[1],  # the checkout
) -> Path:  # the run's folder: a checkpoint, with the checkpoints on the way in it, and the log
    "A finished run on the sample. The first who asks trains it, the others wait for it."
    if demo and _finished(root / "outputs/demo"): return root / "outputs/demo"
    folder = root / "outputs/shared_policy"
    run = folder / _sources_key(root)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not _finished(run):
            command = [sys.executable, "scripts/finetune.py", *SHARED_FLAGS.split()]
            done = subprocess.run(
                [*command, "--output-dir", str(run)],
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(root)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                end = done.stderr[-3000:]
                raise RuntimeError(f"The shared policy could not be trained:\n{end}")
    return run
