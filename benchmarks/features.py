"""What a step costs when features of the frozen network are kept on disk, beside one that looks at images.

    python benchmarks/features.py

For each family in its small size, its vision-language model frozen: samples read, a batch made, forward, backward and
the optimizer's step, by turns in one process. Processor time, so other work on the machine does not count; the last
column is the median of the ratios of the pairs. Losses of the two are equal to the bit, or the script ends.
"""
import argparse
import os
import statistics
import tempfile
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import torch

from gr00t_nb.checkpoints.registry import families
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.embodiments import MODALITY_CONFIGS, load_modality_config
from gr00t_nb.engine.collation import Collator
from gr00t_nb.engine.first_look import FirstLook, front_key
from gr00t_nb.loading.features import FeatureDataset, FeatureStore
from gr00t_nb.loading.order import DataSource
from gr00t_nb.loading.samples import StepDataset
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics

ROOT, TAG, EPISODES = Path(__file__).resolve().parents[1], "new_embodiment", [0, 1]
FROZEN = dict(tune_llm=False, tune_visual=False, tune_top_llm_layers=0)


def made(family, folder: Path) -> tuple:
    "Model, and the two data sets: of images, and of features."
    family.save_tiny(folder / "base")
    load_modality_config(ROOT / "data_samples/cube_to_bowl_config.py")
    robot, ds = MODALITY_CONFIGS.pop(TAG), LeRobotDataset(ROOT / "data_samples/cube_to_bowl")
    processor = family.load_processor(folder / "base")
    processor.set_embodiment(TAG, robot, embodiment_statistics(ds, robot))
    processor.augments = False
    model = family.load_model(folder / "base", **{k: v for k, v in FROZEN.items() if k in family.flags})
    sources = [DataSource(ds, TAG, robot, episodes=EPISODES)]
    store = FeatureStore(front_key(family, model, processor, "cpu"), folder)
    return model, StepDataset(sources, processor, threads=1), FeatureDataset(sources, processor, store)


def measured(family, batch: int, pairs: int) -> tuple[float, float, float, float]:
    "Milliseconds of a step with images, with features, median ratio; milliseconds of looking first, a sample."
    with tempfile.TemporaryDirectory() as folder:
        model, images, features = made(family, Path(folder))
        look, start = FirstLook(family, model, features, torch.device("cpu"), 8, nullcontext), time.process_time()
        for e in EPISODES: look.episode(0, e)
        first = (time.process_time() - start) / sum(len(look.steps(0, e)) for e in EPISODES)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, fused=True)
        collate, times, losses = Collator(images.processor, model.config, 42), ([], []), ([], [])
        for pair in range(-1, pairs):  # the first is not counted
            for k, data in enumerate((images, features)):
                torch.manual_seed(pair)
                start = time.process_time()
                positions = range((pair + 1) * batch, (pair + 2) * batch)
                loss = model.train()(collate(data.__getitems__(positions)))["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses[k].append(loss.item())
                if pair >= 0: times[k].append(1e3 * (time.process_time() - start))
    assert losses[0] == losses[1]
    ratio = statistics.median(b / a for a, b in zip(*times))
    return *map(statistics.median, times), ratio, 1e3 * first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=6)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print("| family | with images, ms | with features | ratio | looking first, ms a sample |\n|---|---|---|---|---|")
    for family in families():
        direct, kept, ratio, first = measured(family, args.batch, args.pairs)
        print(f"| {family.name} | {direct:.0f} | {kept:.0f} | {ratio:.2f} | {first:.1f} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.0f}")


if __name__ == "__main__": main()
