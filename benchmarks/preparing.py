"""What an answer costs beside its model, part by part, and what it cost at another commit.

    python benchmarks/preparing.py                  # beside 2b16280
    python benchmarks/preparing.py --families "GR00T N1.7" --pairs 50
    python benchmarks/preparing.py --inside         # a batch of pictures beside one of frames

The commit is checked out into a temporary worktree. Two processes, one for each checkout, are asked by
turns, on one thread: `get_action` of a policy with the image settings of the released size, whose
model answers at once. Parts: "check" of the observation, "images" to the bytes that the model reads,
"state", "batch" (prompts, stacking), "rounding", "actions" to the robot's units; "all" is
the whole call. A CPU's processor time, medians. With --inside one process makes batches by turns: of pictures, and of
frames that a recording on a GPU would scale.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

import against

BEFORE = "2b16280"
CAMERAS = dict(small=(256, 256), usual=(480, 640))  # height and width
RELEASED = dict(shortest_image_edge=256, crop_fraction=0.95, use_albumentations=True)
BASES = {"GR00T N1.6": "tiny", "GR00T N1.7": "tiny-n1.7"}


def _measured(owner, name: str, part: str, spent: dict):
    "The function `name` of an object or module adds to what its part has spent."
    original = getattr(owner, name)
    def timed(*args, **how):
        begun = time.thread_time()
        try: return original(*args, **how)
        finally: spent[part] += 1000 * (time.thread_time() - begun)
    setattr(owner, name, timed)


def _policy(base: str, size: tuple[int, int], folder: Path):
    "A policy with the released image settings, an observation of one camera, and the same as a step."
    import cv2
    import numpy as np
    from gr00t_nb.data.steps import read_steps
    from gr00t_nb.policy import policy as module
    prepared, path = against._prepared(base, folder, cameras=1)
    root = getattr(prepared, "root", prepared)
    prepared.family.save(folder / "policy", prepared.family.load_model(path), prepared.processor)
    policy = module.Gr00tPolicy(root.tag, folder / "policy", device="cpu")
    processor, config = policy.processor, policy.modality_config
    processor.settings |= RELEASED
    processor.settings.pop("least_pixels", None)  # of the small size
    own = {k: processor.settings[k] for k in processor.image_settings if k in processor.settings}
    processor.image_settings = own | processor.image_rules
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), np.uint8), (0, 0), 2)
    step = read_steps(root.dataset, 0, [0], root.modality_config)[0]
    observation = dict(
        video={k: picture[None, None] for k in config["video"].modality_keys},
        state={k: step[f"state.{k}"][None].astype(np.float32) for k in config["state"].modality_keys},
        language={k: [[step[k]]] for k in config["language"].modality_keys},
    )
    views = {f"video.{k}": v[0] for k, v in observation["video"].items()}
    return policy, observation, {k: v for k, v in step.items() if "action." not in k} | views


def asking(base: str, size: tuple[int, int], folder: Path):
    "A function that asks once and says what each part took, in ms, and what came out."
    import torch
    from gr00t_nb.policy import policy as module
    policy, observation, _ = _policy(base, size, folder)
    processor, rounding = policy.processor, "rounded" if hasattr(policy, "rounded") else "to_device"
    answer, seen = torch.zeros(1, *policy.family.chunk_shape(policy.model.config)), {}
    def model(batch, noise=None, **how):
        seen.update(batch)
        return dict(action_pred=answer)
    policy.model.get_action = model
    spent = defaultdict(float)
    parts = [
        (module, "check_observation", "check"),
        (processor, "images", "images"),
        (processor, "numbers", "state"),
        (processor, "collate", "batch"),
        (policy, rounding, "rounding"),
        (processor, "decode_action", "actions"),
    ]
    for owner, name, part in parts: _measured(owner, name, part, spent)
    noise = policy.draw_noise(0)
    def ask():
        spent.clear()
        begun = time.thread_time()
        actions, _ = policy.get_action(observation, dict(noise=noise))
        spent["all"] = 1000 * (time.thread_time() - begun)
        images = seen["pixel_values"][0].double()
        places = torch.arange(images.numel()).view(images.shape)  # a level elsewhere is another sum
        told = [float(images.sum()), float((images * places).sum())]
        return dict(spent), [*told, *(float(a.sum()) for a in actions.values())]
    return ask


def batches(base: str, size: tuple[int, int], folder: Path, pairs: int) -> list[float]:
    "Median milliseconds of a batch of pictures, and of one of frames, made by turns."
    import torch
    from gr00t_nb.policy.frames_inside import FramesInside
    policy, _, step = _policy(base, size, folder)
    inside = FramesInside(policy.processor, torch.device("cpu"))
    inside.used = True
    taken = [], []
    for _ in range(pairs + 10):
        for spent, chosen in zip(taken, (lambda steps: None, inside.seen)):
            begun = time.thread_time()
            made = policy.processor.many([step], policy.tag, seen=chosen([step]))
            batch = policy.processor.collate(made)
            spent.append(1000 * (time.thread_time() - begun))
    assert "frames" in batch
    return [median(spent[10:]) for spent in taken]


def serve(base: str, camera: str):
    "Asks once for each line that comes in."
    warnings.simplefilter("ignore")
    import cv2
    import torch
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        try: ask = asking(base, CAMERAS[camera], Path(folder))
        except Exception as e: return print(json.dumps(dict(failed=f"{type(e).__name__}: {e}")), flush=True)
        for _ in range(10): ask()
        print(json.dumps(dict(ready=True)), flush=True)
        for _ in sys.stdin:
            spent, told = ask()
            print(json.dumps(dict(spent=spent, told=told)), flush=True)


def compare(old: Path, base: str, camera: str, pairs: int) -> dict[str, tuple[float, float]]:
    "Median milliseconds of each part, old and new."
    command = [sys.executable, __file__, "--serve", base, camera]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    both = [
        subprocess.Popen(command, env=os.environ | dict(PYTHONPATH=str(checkout)), **pipes)
        for checkout in (old, against.ROOT)
    ]
    try:
        for process in both:
            if why := against._told(process).get("failed"): sys.exit(why)
        taken = [defaultdict(list), defaultdict(list)]
        for _ in range(pairs):
            told = []
            for process, parts in zip(both, taken):
                print(file=process.stdin, flush=True)
                answer = against._told(process)
                for part, ms in answer["spent"].items(): parts[part].append(ms)
                told.append(answer["told"])
            if told[0] != told[1]: sys.exit(f"What the model reads differs: {told}")
    finally:
        for process in both: process.communicate()
    return {part: tuple(median(t[part]) for t in taken) for part in taken[0]}


def _inside(args):
    import cv2
    import torch
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print("| family, camera | pictures, ms | frames | pictures / frames |")
    print("|---|---|---|---|")
    for family in args.families:
        for height, width in (*CAMERAS.values(), (240, 320)):
            with tempfile.TemporaryDirectory() as folder:
                a, b = batches(BASES[family], (height, width), Path(folder), args.pairs)
            print(f"| {family}, {width}x{height} | {a:.2f} | {b:.2f} | {a / b:.1f} |", flush=True)
    print("load:", *(f"{x:.1f}" for x in os.getloadavg()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", default=BEFORE)
    parser.add_argument("--families", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--inside", action="store_true")
    args = parser.parse_args()
    if args.inside: return _inside(args)
    print("| family, camera | part | old, ms | new | old / new |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        old, git = Path(folder) / "old", ["git", "-C", str(against.ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", old, args.commit], check=True, capture_output=True)
        try:
            for family in args.families:
                for camera, (height, width) in CAMERAS.items():
                    for part, (a, b) in compare(old, BASES[family], camera, args.pairs).items():
                        print(f"| {family}, {width}x{height} | {part} | {a:.2f} | {b:.2f} | {a / b:.2f} |", flush=True)
        finally: subprocess.run([*git, "remove", "--force", old], check=True, capture_output=True)
    print("load:", *(f"{x:.1f}" for x in os.getloadavg()))


if __name__ == "__main__": serve(*sys.argv[2:]) if sys.argv[1:2] == ["--serve"] else main()
