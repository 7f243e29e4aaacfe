"""Pretrain a small GR00T N1.6 on practice scenes, to be fine-tuned on `cube_to_bowl`.

    python data_samples/pretrain_base.py --out outputs/pretrain      # an hour and a half on two idle cores
    python data_samples/pretrain_base.py --out outputs/pretrain --ship gr00t_nb/pretrained/tiny-cubes

A second process acts and draws scenes (`practice.py`) into a ring of moments in a file, while this
one trains on what lies there. First the backbone alone: from its features linear maps, which are
thrown away later, read where things are and which cube is named. Then the action head joins in, and
each look of the backbone pays for several draws of noise and time. Weights are averaged (EMA), the
rate rises, stays, and falls in the last quarter. Interrupted, the same command goes on.

The words are what such a small model learns last. Three things make it learn them: moments before a
grasp are drawn four times as often, a quarter of all moments is shown with the sentence of the other
cube (its place is then to be read, no action is learned), and every picture token has to know which
colour was named.
"""
import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from practice import CAMERAS, HEIGHT, HORIZON, PRACTICE, WIDTH, WORDS, Practice, act, scene
from torch import nn

from gr00t_nb.backbones.eagle import eagle_config
from gr00t_nb.checkpoints.registry import families
from gr00t_nb.data.moments import summarize
from gr00t_nb.embodiments import MODALITY_CONFIGS, load_modality_config
from gr00t_nb.errors import command
from gr00t_nb.families.n1d6 import Gr00tN1d6
from gr00t_nb.families.n1d6_config import Gr00tN1d6Config
from gr00t_nb.model.per_embodiment import train_embodiment_rows
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.processing.prompts import train_tokenizer
from gr00t_nb.simulators.arm_scene import CUBE_COLOURS

TAG = "new_embodiment"
EDGE = 112
SENTENCES = [w.format(c) for w in WORDS for c in CUBE_COLOURS]
RECORD = np.dtype([
    ("images", np.uint8, (len(CAMERAS), HEIGHT, WIDTH, 3)),
    ("state", np.float32, 7),
    ("action", np.float32, (HORIZON, 7)),
    ("places", np.float32, (6, 3)),
    ("sentence", np.int64),
])


def put(file: Path, number: int):
    "A number into a file that others read meanwhile."
    part = file.with_name(file.name + ".part")
    part.write_text(str(number))
    part.replace(file)


def before_grasp(places: np.ndarray) -> np.ndarray:  # (n, 6, 3) -> bool (n,)
    "Whether the named cube still lies on the table and the hand is not yet at it."
    away = np.linalg.norm(places[:, 5], axis=1) > 0.06
    to_bowl = np.linalg.norm(places[:, 0, :2] - places[:, 2, :2], axis=1)
    return away & (places[:, 4, 2] < 0.5) & (to_bowl > 0.08)


class Ring:
    "Moments in a file: new ones take the places of the oldest."

    def __init__(self, path: Path, size: int):
        self.size, self.count_file = size, path.with_suffix(".count")
        self.wanted_file = path.with_suffix(".wanted")
        mode = "r+" if path.exists() else "w+"
        self.rows = np.memmap(path, RECORD, mode, shape=(size,))

    @property
    def written(self) -> int:
        try: return int(self.count_file.read_text())
        except (FileNotFoundError, ValueError): return 0

    @property
    def wanted(self) -> int:
        "Moments up to which the workers run ahead."
        try: return int(self.wanted_file.read_text())
        except (FileNotFoundError, ValueError): return 0

    def add(self, moments: list):
        at = self.written
        for i, m in enumerate(moments):
            sentence = m.words * len(CUBE_COLOURS) + m.task
            self.rows[(at + i) % self.size] = m.images, m.state, m.action, m.places, sentence
        put(self.count_file, at + len(moments))

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        "Rows; those before a grasp, where the words matter, four times as often as others."
        at = rng.integers(min(self.written, self.size), size=4 * count)
        undecided = before_grasp(self.rows["places"][at])
        keep = at[rng.random(len(at)) < np.where(undecided, 1.0, 0.25)]
        return self.rows[np.sort(np.concatenate([keep, at])[:count])]


def keep_acting(path: Path, size: int, seed: int, worker: int, workers: int):
    "A process that acts and draws scene after scene, from where the last one stopped."
    os.environ["LP_NUM_THREADS"] = "1"
    sim, ring, number = Practice(), Ring(path, size), path.with_suffix(f".next{worker}")
    n = int(number.read_text()) if number.exists() else worker
    parent = os.getppid()
    while os.getppid() == parent:
        while ring.written > ring.wanted and os.getppid() == parent: time.sleep(0.5)
        ring.add(scene(sim, [PRACTICE, seed, n]))
        n += workers
        number.write_text(str(n))


def make_model(seed: int) -> tuple[Gr00tN1d6, Gr00tProcessor]:
    "A small N1.6 with random weights, and its processor with the ranges of practice scenes."
    tokenizer = train_tokenizer(SENTENCES + ["You are a helpful assistant.", "system user assistant"])
    dit = dict(num_layers=8, num_attention_heads=6, attention_head_dim=24, output_dim=128, dropout=0.0)
    tiny, _ = Gr00tN1d6Config.size("tiny")
    config = Gr00tN1d6Config.from_dict(tiny.to_dict() | dict(
        model_name="tiny-cubes",
        shortest_image_edge=EDGE,
        crop_fraction=1.0,
        hidden_size=128,
        max_state_dim=16,
        max_action_dim=16,
        max_seq_len=32,
        diffusion_model_cfg=tiny.diffusion_model_cfg | dit,
    ))
    eagle = eagle_config(
        dict(hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
             num_patches=(EDGE // 14) ** 2),
        dict(hidden_size=160, intermediate_size=480, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=40, vocab_size=512),
        tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )
    load_modality_config(Path(__file__).parent / "cube_to_bowl_config.py")
    robot = MODALITY_CONFIGS[TAG]
    processor = Gr00tProcessor(
        {TAG: robot}, {TAG: ranges(seed)}, tokenizer=tokenizer, use_albumentations=True,
        shortest_image_edge=EDGE, crop_fraction=1.0, max_state_dim=16, max_action_dim=16,
        max_action_horizon=HORIZON, apply_sincos_state_encoding=True, use_relative_action=True,
    )
    return Gr00tN1d6.from_config(config, eagle, seed=seed), processor


def ranges(seed: int, scenes: int = 100) -> dict:
    "Statistics of scenes without pictures: as ends of a range what one number in 250 exceeds."
    sim = Practice()
    acted = [a for i in range(scenes) if (a := act(sim, np.random.default_rng([PRACTICE, seed, 1, i])))]
    state, chunks = (np.concatenate([getattr(a, k) for a in acted]) for k in ("state", "action"))
    state, chunks = state.reshape(-1, 7), chunks.reshape(-1, HORIZON, 7)

    def of(x):
        s = {k: v.tolist() for k, v in summarize(x).items()}
        low, high = np.quantile(x, [0.004, 0.996], axis=0)
        return s | dict(min=low.tolist(), max=high.tolist())

    parts = lambda x: dict(single_arm=of(x[:, :6]), gripper=of(x[:, 6:]) | dict(min=[0.0], max=[1.0]))
    relative = chunks[:, :, :6] - state[:, None, :6]
    by_step = [of(relative[:, k]) for k in range(HORIZON)]
    arm = {k: [s[k] for s in by_step] for k in by_step[0]}
    return dict(state=parts(state), action=parts(chunks[:, 0]), relative_action=dict(single_arm=arm))


class Batches:
    "Rows of the ring as the processor's batches: the same numbers, faster."

    def __init__(self, processor: Gr00tProcessor):
        self.processor, sa = processor, processor.state_action
        blank = [np.zeros((EDGE, EDGE, 3), np.uint8)] * len(CAMERAS)
        view = {"video.front": blank[0][None], "video.wrist": blank[1][None]}
        numbers = {"state.single_arm": np.zeros((1, 6), np.float32), "state.gripper": np.zeros((1, 1), np.float32)}
        key = processor.modality_configs[TAG]["language"].modality_keys[0]
        steps = [view | numbers | {key: s} for s in SENTENCES]
        prompts = processor.collate([processor(s, TAG, training=False) for s in steps])
        self.ids, self.mask = prompts["input_ids"], prompts["attention_mask"]
        self.sa = sa

    def __call__(self, rows: np.ndarray) -> dict:
        n = len(rows)
        images = np.zeros((n, len(CAMERAS), EDGE, EDGE, 3), np.uint8)
        top = (EDGE - HEIGHT) // 2
        images[:, :, top:top + HEIGHT] = rows["images"]
        pixels = torch.from_numpy(images.reshape(-1, EDGE, EDGE, 3)).permute(0, 3, 1, 2)
        s, a = rows["state"], rows["action"]
        state = dict(single_arm=s[:, None, :6], gripper=s[:, None, 6:])
        action = dict(single_arm=a[..., :6], gripper=a[..., 6:])
        x = np.concatenate(list(self.sa.apply_state(state, TAG).values()), -1)
        y = np.concatenate(list(self.sa.apply_action(action, TAG, state).values()), -1)
        pad = lambda v: F.pad(torch.from_numpy(v.astype(np.float32)), (0, 16 - v.shape[-1]))
        mask = torch.zeros(n, HORIZON, 16)
        mask[..., :7] = 1
        which = torch.from_numpy(rows["sentence"].copy())
        return dict(
            input_ids=self.ids[which], attention_mask=self.mask[which],
            pixel_values=[pixels.contiguous()], state=pad(x), action=pad(y), action_mask=mask,
            embodiment_id=self.processor.embodiment_ids[TAG], places=torch.from_numpy(rows["places"].copy()),
        )


def cell_of(places: torch.Tensor) -> torch.Tensor:  # (n, 3) metres -> int64 (n,)
    "The token of the front picture in which a place lies, as the usual camera sees it."
    eye, target = torch.tensor([0.76, -0.07, 0.56]), torch.tensor([0.215, -0.046, 0.075])
    z = F.normalize(eye - target, dim=0)
    x = F.normalize(torch.linalg.cross(torch.tensor([0.0, 0, 1]), z), dim=0)
    axes = torch.stack([x, torch.linalg.cross(z, x), z])
    right, up, back = ((places - eye) @ axes.T).T
    focal, cells = 0.5 * HEIGHT / np.tan(np.radians(18)), EDGE // 28
    column, row = EDGE / 2 - focal * right / back, EDGE / 2 + focal * up / back
    return (row // 28).long().clamp(0, cells - 1) * cells + (column // 28).long().clamp(0, cells - 1)


class Reading(nn.Module):
    "Where things are, read by maps from the picture tokens and from the last word."

    def __init__(self, width: int, tokens: int):
        super().__init__()
        self.pictures = nn.Linear(width * tokens, 15)
        self.colour = nn.Linear(width, 1)  # of the named cube, from every picture token
        self.cell = nn.Linear(width, 1)  # whether the named cube is there, from tokens of the front picture
        self.word = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 18))

    def forward(
        self,
        seen: dict,  # what the backbone returned
        places: torch.Tensor,  # (n, 6, 3), as in `Moment`
        red: torch.Tensor,  # bool (n,): the red cube is named
        other: torch.Tensor,  # bool (n,): see `told_otherwise`
    ) -> tuple[torch.Tensor, dict]:
        "The loss of all maps together, and medians in mm to be logged."
        x, goal = seen["backbone_features"], (places - MIDDLE) * SCALE
        tokens = x[seen["image_mask"]].view(len(x), -1, x.shape[-1])
        word = self.word(x[:, -1]).view(-1, 6, 3)
        weight = torch.tensor([4, 0, 1, 1, 0.3, 4.0]).repeat(len(x), 1)
        weight[other, 4] = 0  # nobody knows how that cube is turned
        by_word = F.smooth_l1_loss(word, goal, beta=0.05, reduction="none") * weight[..., None]
        cubes = torch.where(red[:, None, None], goal[:, :2], goal[:, :2].flip(1))
        every = torch.cat([cubes, goal[:, 2:4], goal[:, :1]], 1)  # red, blue, bowl, grip, named
        flat = self.pictures(tokens.flatten(1)).view(-1, 5, 3)
        by_picture = F.smooth_l1_loss(flat, every, beta=0.05, reduction="none")
        by_picture = by_picture * torch.tensor([1, 1, 1, 1, 4.0])[:, None]
        colour = self.colour(tokens)[..., 0]
        told = F.binary_cross_entropy_with_logits(colour, red.float()[:, None].expand_as(colour))
        cell = self.cell(tokens[:, :tokens.shape[1] // 2])[..., 0]
        found = F.cross_entropy(cell, cell_of(places[:, 0]))
        early = torch.from_numpy(before_grasp(places.numpy())) | other
        said = self.told(word.detach(), flat.detach(), goal, every, early) | dict(colour=told.item())
        return by_word.mean() + by_picture.mean() + 0.2 * told + 0.1 * found, said

    def told(self, word, flat, goal, every, early) -> dict[str, float]:
        "Median errors in the plane, mm, of moments before a grasp (`late`: of the others), and confusion."
        far = lambda a, b: 100 * (a - b)[:, :2].norm(dim=-1)
        named, other = (far(word[early, 0], goal[early, k]) for k in (0, 1))
        return dict(
            word=named.median().item(),
            late=far(word[~early, 0], goal[~early, 0]).median().item(),
            confused=(other < named).float().mean().item(),
            named=far(flat[early, 4], every[early, 4]).median().item(),
            picture=far(flat[:, 0], every[:, 0]).median().item(),
            bowl=far(word[:, 2], goal[:, 2]).median().item(),
        )


#: What is near to the mean of each row of `places`, and how it is scaled for `Reading`.
MIDDLE = torch.tensor([
    [0.27, 0.02, 0.05], [0.27, 0.02, 0.05], [0.255, -0.215, 0.0], [0.25, -0.05, 0.1], [0, 0, 0], [0, 0, -0.05],
])
SCALE = torch.tensor([10.0, 10, 10, 10, 1, 10])[:, None]


def rate(step: int, steps: int, warmup: int = 200) -> float:
    "Share of the peak: up, level, and from three quarters on down."
    if step < warmup: return (step + 1) / warmup
    left = (steps - step) / (0.25 * steps)
    return max(0.02, min(1.0, left))


class Trained:
    "Model, maps that are thrown away, optimizer and averages: what a run consists of."

    def __init__(self, seed: int, lr: float, made=None):
        self.model, self.processor = made or make_model(seed)
        self.slot = self.processor.embodiment_ids[TAG]
        train_embodiment_rows(self.model, [self.slot])
        self.model.train()
        torch.manual_seed(seed)
        self.reading = Reading(160, len(CAMERAS) * (EDGE // 28) ** 2)
        parts = [*self.model.named_parameters(), *self.reading.named_parameters()]
        trains = [(n, p) for n, p in parts if p.requires_grad]
        big = [p for n, p in trains if p.dim() > 1 and "embed" not in n]
        small = [p for n, p in trains if not (p.dim() > 1 and "embed" not in n)]
        groups = [dict(params=big, weight_decay=0.02), dict(params=small, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
        self.lr, self.step, self.parameters = lr, 0, [p for _, p in trains]
        self.average = [p.detach().clone() for p in self.model.parameters()]

    def update(self, steps: int):
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for g in self.optimizer.param_groups: g["lr"] = self.lr * rate(self.step, steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        weight = 1 - min(0.998, (1 + self.step) / (10 + self.step))
        with torch.no_grad(): torch._foreach_lerp_(self.average, list(self.model.parameters()), weight)

    def save(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        state = dict(
            model=self.model.state_dict(), reading=self.reading.state_dict(),
            optimizer=self.optimizer.state_dict(), average=self.average, step=self.step,
        )
        torch.save(state, folder / "state.part")
        os.replace(folder / "state.part", folder / "state.pt")
        own = [p.detach().clone() for p in self.model.parameters()]
        with torch.no_grad(): torch._foreach_copy_(list(self.model.parameters()), self.average)
        families()[0].save(folder / "base", self.model, self.processor)
        with torch.no_grad(): torch._foreach_copy_(list(self.model.parameters()), own)

    def load(self, folder: Path):
        state = torch.load(folder / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.reading.load_state_dict(state["reading"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]


def repeated(seen: dict, times: int) -> dict:
    return {k: v.repeat(times, *[1] * (v.dim() - 1)) for k, v in seen.items()}


def told_otherwise(rows: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:  # bool (n,)
    "In some rows the sentence names the other cube: places are read of them, but no actions learned."
    other = rng.random(len(rows)) < share
    p = rows["places"][other]
    p[:, [0, 1]] = p[:, [1, 0]]
    p[:, 5] = p[:, 0] - p[:, 3]
    rows["places"][other] = p
    rows["sentence"][other] ^= 1
    return other


def losses(t: Trained, batch: dict, draws: int, with_actions: bool) -> tuple:
    "Of the reading maps and of the flow, for one batch."
    places, red, other = batch["places"], batch["sentence"] % 2 == 0, batch["other"]
    batch["action_mask"][other] = 0
    batch = t.model.prepare(batch)
    seen = t.model.see(batch)
    read, said = t.reading(seen, places, red, other)
    if not with_actions: return read, said
    own = {k: batch[k] for k in ("state", "action", "action_mask")}
    flow = t.model.action_head(repeated(seen, draws), repeated(own, draws) | dict(embodiment_id=t.slot))["loss"]
    return flow + read, said | dict(flow=flow.item())


def train(args):
    out, rng = args.out, np.random.default_rng([args.seed, 2])
    out.mkdir(parents=True, exist_ok=True)
    context, ring = multiprocessing.get_context("spawn"), Ring(out / "ring", args.ring)
    for w in range(args.workers):
        how = out / "ring", args.ring, args.seed, w, args.workers
        context.Process(target=keep_acting, args=how, daemon=True).start()
    t = Trained(args.seed, args.lr)
    if (out / "state.pt").exists(): t.load(out)
    batches = Batches(t.processor)
    want = lambda step: put(ring.wanted_file, args.first + int(step * args.batch * args.fresh))
    want(t.step)
    while ring.written < args.first: time.sleep(1)
    log, begin, sums = open(out / "log.jsonl", "a"), time.time(), {}
    for step in range(t.step, args.steps):
        rows = ring.draw(args.batch, rng)
        other = torch.from_numpy(told_otherwise(rows, args.otherwise, rng))
        batch = batches(rows) | dict(sentence=torch.from_numpy(rows["sentence"].copy()), other=other)
        loss, said = losses(t, batch, args.draws, step >= args.eyes_first)
        loss.backward()
        t.update(args.steps)
        for k, v in said.items(): sums.setdefault(k, []).append(v)
        if t.step % 25 == 0:
            line = {k: round(float(np.mean(v)), 4) for k, v in sums.items()}
            line |= dict(step=t.step, seconds=round(time.time() - begin), cpu=round(time.process_time()),
                         moments=ring.written)
            print(json.dumps(line), file=log, flush=True)
            sums = {}
            want(t.step)
        if t.step % args.save == 0 or t.step == args.steps: t.save(out)


def ship(out: Path, folder: Path):
    "The averaged weights as a base checkpoint in bfloat16; what else lies in the folder stays."
    family = families()[0]
    model = family.load_model(out / "base", dtype=torch.bfloat16)
    family.save(folder, model, family.load_processor(out / "base"))


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--eyes-first", type=int, default=1000, help="steps without the action head")
    parser.add_argument("--batch", type=int, default=64, help="moments in a step")
    parser.add_argument("--draws", type=int, default=2, help="of noise and time for each moment")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ring", type=int, default=40_000, help="moments that are kept")
    parser.add_argument("--first", type=int, default=8_000, help="moments to begin with")
    fresh = "new moments for each that is trained on: the rest is seen again"
    parser.add_argument("--fresh", type=float, default=0.5, help=fresh)
    share = "of moments with the other cube's sentence: they teach the words"
    parser.add_argument("--otherwise", type=float, default=0.25, help=share)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--save", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--ship", type=Path, help="write the run's model into this folder, and train nothing")
    args = parser.parse_args()
    if args.ship: ship(args.out, args.ship)
    else: train(args)


if __name__ == "__main__": main()
