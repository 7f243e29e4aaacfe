"""How much faster an answer and a training step have become on a CPU since another commit.

    python benchmarks/against.py                    # c4fd6e4: before anything was recorded
    python benchmarks/against.py 65851db --bases tiny-n1.5 tiny-n1.7 tiny-cubes

The commit is checked out into a temporary worktree. Two processes, one for each checkout, answer and
train by turns, on one thread; the ratio is the median of the pairs. Two rows for each model: an answer
from an observation (one camera of the sample) to actions in the robot's units, and a step of training
(32 samples of the sample's two cameras: forward, backward, clipping, AdamW; batches made before).
What is asked of this checkout is accelerated where it can be; `--plain` measures it as it is.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data_samples/cube_to_bowl"
BEFORE = "c4fd6e4"
WARM = 4  # calls that are not counted


def _modules():
    "What both checkouts have, in the places where they have it."
    try: from gr00t_nb.settings.config import FinetuneConfig
    except ImportError: from gr00t_nb.training.config import FinetuneConfig
    try: from gr00t_nb.checkpoints.base_models import resolve_base_model
    except ImportError: from gr00t_nb.families.base_models import resolve_base_model
    from gr00t_nb.training.prepare import prepare_data
    return FinetuneConfig, resolve_base_model, prepare_data


def _prepared(base: str, folder: Path, cameras: int):
    make, resolve, prepare = _modules()
    text = Path(f"{SAMPLE}_config.py").read_text()
    robot = folder / "robot.py"
    robot.write_text(text if cameras == 2 else text.replace('"front", "wrist"', '"front"'))
    config = make(
        base_model_path=base,
        dataset_path=str(SAMPLE),
        embodiment_tag="NEW_EMBODIMENT",
        modality_config_path=str(robot),
        output_dir=str(folder / "run"),
        check_data=False,
    )
    return prepare(config), resolve(base)


def answering(base: str, folder: Path, plain: bool):
    "A function that asks a policy once."
    import numpy as np
    from gr00t_nb.data.steps import read_steps
    from gr00t_nb.policy.policy import Gr00tPolicy
    prepared, path = _prepared(base, folder, cameras=1)
    root = getattr(prepared, "root", prepared)
    prepared.family.save(folder / "policy", prepared.family.load_model(path), prepared.processor)
    policy = Gr00tPolicy(root.tag, folder / "policy", device="cpu")
    if hasattr(policy, "accelerate") and not plain: policy.accelerate()
    config = root.modality_config
    step = read_steps(root.dataset, 0, [0], config)[0]
    array = lambda m, k: step[f"{m}.{k}"][None].astype(np.uint8 if m == "video" else np.float32)
    observation = {m: {k: array(m, k) for k in config[m].modality_keys} for m in ("video", "state")}
    observation["language"] = {k: [[step[k]]] for k in config["language"].modality_keys}
    noise = policy.draw_noise(0)
    def ask():
        actions, _ = policy.get_action(observation, dict(noise=noise))
        return [float(np.abs(a).sum()) for a in actions.values()]
    return ask


def training(base: str, folder: Path, plain: bool):
    "A function that trains one step of 32 samples."
    import torch
    from gr00t_nb.loading.samples import StepDataset
    prepared, path = _prepared(base, folder, cameras=2)
    family = prepared.family
    model = family.load_model(path, **family.flags).train()
    sources = getattr(prepared, "sources", None)
    if sources is None:
        from gr00t_nb.loading.order import DataSource
        sources = [DataSource(prepared.dataset, prepared.tag, prepared.modality_config)]
    data = StepDataset(sources, prepared.processor, seed=0)
    batch = data.collate(data.__getitems__(list(range(32))))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-5, fused=True)
    def step():
        loss = model(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return [float(loss)]
    return step


KINDS = dict(answer=answering, step=training)


def serve(base: str, kind: str, plain: str):
    "Does it once for each line that comes in; says the seconds of the processor and of the clock."
    warnings.simplefilter("ignore")
    import cv2
    import torch
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        try: run = KINDS[kind](base, Path(folder), plain == "plain")
        except Exception as e: return print(json.dumps(dict(failed=f"{type(e).__name__}: {e}")), flush=True)
        for _ in range(WARM): run()
        print(json.dumps(dict(ready=True)), flush=True)
        for _ in sys.stdin:
            clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            told = run()
            after = resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            seconds = [cpu, time.perf_counter() - clock]
            print(json.dumps(dict(seconds=seconds, told=told)), flush=True)


def _started(checkout: Path, base: str, kind: str, plain: bool) -> subprocess.Popen:
    env = os.environ | dict(PYTHONPATH=str(checkout))
    command = [sys.executable, __file__, "--serve", base, kind, "plain" if plain else "best"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, **pipes)


def _told(process: subprocess.Popen) -> dict:
    line = process.stdout.readline()
    return json.loads(line) if line else dict(failed="the process ended")


def compare(old: Path, base: str, kind: str, pairs: int, plain: bool) -> dict:
    "Milliseconds of each pair, old and new: of the processor and of the clock."
    from statistics import median
    both = [_started(old, base, kind, plain), _started(ROOT, base, kind, plain)]
    try:
        for name, process in zip(("there", "here"), both):
            if why := _told(process).get("failed"): return dict(failed=f"{name}: {why[:90]}")
        rows, told = [], [None, None]
        for k in range(pairs):
            taken = [None, None]
            for i in (0, 1) if k % 2 else (1, 0):
                print(file=both[i].stdin, flush=True)
                answer = _told(both[i])
                if why := answer.get("failed"): return dict(failed=why)
                taken[i], told[i] = answer["seconds"], answer["told"]
            rows.append([*taken[0], *taken[1]])
    finally:
        for process in both: process.communicate()
    old_cpu, old_wall, new_cpu, new_wall = ([1000 * r[i] for r in rows] for i in range(4))
    return dict(
        old_ms=median(old_cpu),
        new_ms=median(new_cpu),
        cpu=median(a / b for a, b in zip(old_cpu, new_cpu)),
        wall=median(a / b for a, b in zip(old_wall, new_wall)),
        apart=max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(*told)),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", default=BEFORE)
    parser.add_argument("--bases", nargs="+", default=["tiny"], help="tiny, tiny-n1.5, tiny-cubes, ...")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--pairs", type=int, default=30, help="of each row; steps take a third")
    parser.add_argument("--plain", action="store_true", help="answers as they are, not accelerated")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old, git = Path(folder) / "old", ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", old, args.commit], check=True, capture_output=True)
        try:
            print("| row | old, ms of the processor | new | old / new | by the clock | answers apart |")
            print("|---|---|---|---|---|---|")
            for base in args.bases:
                for kind in args.kinds:
                    pairs = args.pairs if kind == "answer" else max(2, args.pairs // 3)
                    r = compare(old, base, kind, pairs, args.plain)
                    if "failed" in r: print(f"| {base}, {kind} | {r['failed']} |", flush=True)
                    else:
                        print(
                            f"| {base}, {kind} | {r['old_ms']:.1f} | {r['new_ms']:.1f} |"
                            f" {r['cpu']:.2f} | {r['wall']:.2f} | {r['apart']:.1e} |",
                            flush=True,
                        )
        finally: subprocess.run([*git, "remove", "--force", old], check=True, capture_output=True)
    print("load:", *(f"{x:.1f}" for x in os.getloadavg()))


if __name__ == "__main__": serve(*sys.argv[2:]) if sys.argv[1:2] == ["--serve"] else main()
