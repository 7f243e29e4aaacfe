"""How much of a batch's prompts is padding, and what would be left if prompts of equal length came together.

    python benchmarks/padding.py --gr1 PATH/TO/gr1.PickNPlace --tokenizer PATH/TO/tokenizer

Batches of 64 in the kit's order. "sorted" are the same samples, those of 16 batches sorted by length before they are
dealt out: the most that an order by length within a window of 1,024 samples can save. Image tokens are those of
256x256 cameras of GR00T N1.6 (81 each). The mixtures are drawn: sentences of so many tokens, half of each.
"""
import argparse
from pathlib import Path

import numpy as np

from gr00t_nb.data.language import read_instruction
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.loading.order import permuted
from gr00t_nb.processing.prompts import chat_text, expand_images, formalize, load_tokenizer

ROOT, BATCH, WINDOW, IMAGE = Path(__file__).resolve().parents[1], 64, 16, 81


def shares(lengths: np.ndarray) -> tuple[float, float]:
    "Padding in batches as they come, and sorted within windows."
    n = len(lengths) // (BATCH * WINDOW) * BATCH * WINDOW
    mixed = lengths[permuted(range(n), len(lengths), 42)]
    by_length = np.sort(mixed.reshape(-1, BATCH * WINDOW), axis=1)
    share = lambda x: 1 - x.sum() / (x.max(1) * BATCH).sum()
    return share(mixed.reshape(-1, BATCH)), share(by_length.reshape(-1, BATCH))


def lengths_of(path: Path, key: str, cameras: int, tokenizer) -> np.ndarray:
    "Tokens of the prompt of each step."
    ds, known = LeRobotDataset(path), {}
    def tokens(text: str) -> int:
        if text not in known:
            prompt = expand_images(chat_text(formalize(text), cameras), [IMAGE] * cameras)
            known[text] = len(tokenizer(prompt).input_ids)
        return known[text]
    steps = [(e, s) for e in range(len(ds)) for s in range(ds.episodes[e].length)]
    return np.array([tokens(read_instruction(ds, e, s, key)) for e, s in steps])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gr1", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    tokenizer, key = load_tokenizer(args.tokenizer), "annotation.human.task_description"
    rows = {"cube_to_bowl, 2 cameras": lengths_of(ROOT / "data_samples/cube_to_bowl", key, 2, tokenizer)}
    if args.gr1: rows["gr1.PickNPlace, 1 camera"] = lengths_of(args.gr1, "task", 1, tokenizer)
    rng, frame = np.random.default_rng(0), 24  # tokens around a sentence
    for short, long, cameras in ((6, 12, 2), (6, 30, 2), (6, 30, 1), (6, 100, 1)):
        said = np.where(rng.random(64 * 1024) < 0.5, short, long) + frame + cameras * IMAGE
        rows[f"drawn: {short} and {long} tokens, {cameras} camera{'s' * (cameras > 1)}"] = said
    print("| prompts | tokens | padding | sorted |\n|---|---|---|---|")
    for name, lengths in rows.items():
        now, best = shares(lengths)
        print(f"| {name} | {lengths.min()} to {lengths.max()} | {now:.1%} | {best:.1%} |")


if __name__ == "__main__": main()
