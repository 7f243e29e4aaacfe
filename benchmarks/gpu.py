"""What a GPU makes of this kit: the machine, whether its numbers are right, and how fast it trains.

    python benchmarks/gpu.py --json gpu.json

Four sections, each a table:

- machine: what the card reaches, by a large matrix product and a large copy;
- correctness: loss, gradients and actions on the GPU against float64 on the CPU, for every family
  in its small size; two equal runs; a run that stopped and goes on against one that did not;
- training: steps of a model of the released size with random weights, through the same trainer,
  optimizer, loader and data set as `scripts/finetune.py`. Seconds of a step by phase, counted
  operations, share of the card's datasheet rate (MFU), largest memory, waiting for data;
- inference: milliseconds of one answer of such a model of each generation, from images to the
  robot's units; of a recording its own share, how many calls it has, and how its products are cut.

No network and no checkpoint are needed. A row that fails says why, and the others go on; then the
exit code is 1. Each section has a time limit of its own; each row is printed and written at once, so
that a run that is cut keeps what was done. `--quick` goes the same way in small sizes in a minute;
without a GPU every section runs so, on the CPU, and says so.
"""
import argparse
import gc
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from gr00t_nb.data.steps import read_steps
from gr00t_nb.checkpoints.base_models import tiny_base
from gr00t_nb.families.n1d6 import Gr00tN1d6
from gr00t_nb.families.n1d6_config import Gr00tN1d6Config
from gr00t_nb.families.n1d6_family import TINY_SENTENCES
from gr00t_nb.checkpoints.registry import families, family_of
from gr00t_nb.loading.samples import StepDataset
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.processing.prompts import train_tokenizer
from gr00t_nb.runs.phases import PhaseClock
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.experiment import training_arguments
from gr00t_nb.training.finetune import finetune, load_model
from gr00t_nb.training.plan import fit_memory, plan_prepared, saving
from gr00t_nb.training.prepare import prepare_data, training_dataset
from gr00t_nb.engine.collation import Collator
from gr00t_nb.engine.first_look import as_features, look_first
from gr00t_nb.engine.stopping import StopOnSignal
from gr00t_nb.engine.trainer import Gr00tTrainer
from gr00t_nb.processes.deterministic import CUBLAS, deterministic

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data_samples/cube_to_bowl"
DATASHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
#: dense bf16 operations a second, by a word of the card's name


def _robot(folder: Path, cameras: int) -> Path:
    "The sample's modality configuration, with its front camera alone or as it is."
    text = Path(f"{SAMPLE}_config.py").read_text()
    path = folder / f"{cameras}_cameras.py"
    path.write_text(text.replace('"front", "wrist"', '"front"') if cameras == 1 else text)
    return path


def _sample_config(base: str, folder: Path, name: str, cameras: int = 1, **options) -> FinetuneConfig:
    folder.mkdir(parents=True, exist_ok=True)
    return FinetuneConfig(
        base_model_path=base,
        dataset_path=str(SAMPLE),
        embodiment_tag="NEW_EMBODIMENT",
        modality_config_path=str(_robot(folder, cameras)),
        output_dir=str(folder / name),
        check_data=False,
        **options,
    )


def _median_seconds(run, times: int = 10) -> float:
    "Of one call, by events of the GPU."
    for _ in range(3): run()
    seconds = []
    for _ in range(times):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return statistics.median(seconds)


# ------------------------------------------------------------------------------------------ machine
def machine(args) -> list[dict]:  # one after the other
    "What the card is and reaches."
    rows = [dict(what="torch", value=torch.__version__), dict(what="cores", value=os.cpu_count())]
    if args.device != "cuda": return [dict(what="CPU", value=platform.processor() or "?"), *rows]
    card = torch.cuda.get_device_properties(0)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / _median_seconds(lambda: a @ b)
    big = torch.randn(2**30, device="cuda")
    other = torch.empty_like(big)
    copy = 2 * big.nbytes / _median_seconds(lambda: other.copy_(big))
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    lane = host.nbytes / _median_seconds(lambda: host.to("cuda", non_blocking=True))
    return [
        dict(what="card", value=card.name),
        dict(what="memory, GB", value=round(card.total_memory / 1e9, 1)),
        dict(what="bf16 matrix product, TFLOP/s", value=round(product / 1e12)),
        dict(what="copy, TB/s read and written", value=round(copy / 1e12, 2)),
        dict(what="pinned memory to the card, GB/s", value=round(lane / 1e9, 1)),
        dict(what="CUDA", value=torch.version.cuda),
        *rows,
    ]


# -------------------------------------------------------------------------------------- correctness
def _numbers(family, base: Path, batch: dict, device: str, dtype, autocast: bool = False) -> dict:
    "Loss, gradients and actions of a batch."
    model = family.load_model(base, device=device, dtype=dtype).eval()
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        loss = model(batch)["loss"]
    loss.backward()
    grads = [p.grad.double().flatten().cpu() for p in model.parameters() if p.grad is not None]
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        actions = model.get_action(batch, noise=batch["noise"])["action_pred"]
    return dict(loss=loss.detach().double().cpu(), gradients=torch.cat(grads),
                actions=actions.double().cpu())


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:  # relative to the norm of b
    return float((a - b).norm() / b.norm())


def _some_batch(base: Path, folder: Path, size: int = 4) -> dict:
    config = _sample_config(str(base), folder, "batch", global_batch_size=size)
    prepared = prepare_data(config)
    data = StepDataset(prepared.sources, prepared.processor, seed=0)
    settings = prepared.family.read_config(base)
    return Collator(prepared.processor, settings, seed=0)(data.__getitems__(list(range(size))))


def _against_float64(args, folder: Path) -> Iterator[dict]:
    for family in families():
        base = tiny_base(family=family)
        batch = _some_batch(base, folder)
        exact = _numbers(family, base, batch, "cpu", torch.float64)
        for name, dtype, autocast, most in (
            ("float32", torch.float32, False, 1e-4),
            ("float32 with bf16 autocast", torch.float32, True, 5e-2),
            ("bf16", torch.bfloat16, False, 5e-2),
        ):
            got = _numbers(family, base, batch, args.device, dtype, autocast)
            off = {k: _apart(got[k], exact[k]) for k in exact}
            if dtype is torch.bfloat16: del off["gradients"]  # nothing trains in it
            row = dict(what=f"{family.name}, small, {name}")
            row |= {k: f"{v:.1e}" for k, v in off.items()}
            yield row | dict(allowed=f"{most:.0e}", ok=max(off.values()) <= most)


def _weights(folder: Path) -> torch.Tensor:
    model = family_of(folder).load_model(folder)
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


class StopAfter(TrainerCallback):
    "Ends a run after a step, as Ctrl-C does: with a checkpoint."

    def __init__(self, step: int): self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step: control.should_training_stop = control.should_save = True


def _run(family, folder: Path, name: str, stop: int = 6):
    options = dict(max_steps=6, save_steps=3, logging_steps=1, global_batch_size=4)
    if "state_dropout" in family.capabilities: options |= dict(state_dropout_prob=0.2)
    config = _sample_config(family.tiny_name, folder, name, dataloader_num_workers=0, **options)
    finetune(config, callbacks=[StopAfter(stop)])


def _goes_on(args, folder: Path) -> Iterator[dict]:
    "Two equal runs, and one that stopped half way and went on, to the bit."
    for family in families()[: 1 if args.quick else None]:
        own = folder / family.tiny_name
        for name, stop in (("whole", 6), ("again", 6), ("parts", 3), ("parts", 6)):
            _run(family, own, name, stop)
        whole, again, parts = (_weights(own / n) for n in ("whole", "again", "parts"))
        for what, other in (("run twice", again), ("stopped and gone on", parts)):
            row = dict(what=f"{family.name}, small, 6 steps, {what}")
            row |= dict(weights=f"{_apart(other, whole):.1e}", allowed="0")
            yield row | dict(ok=torch.equal(other, whole))


def _graph_answers(args, folder: Path) -> Iterator[dict]:
    "Answers of recordings against plain ones: the second and third question of a shape, and again."
    for family in families():
        policy, steps = _policy(args, folder / family.tiny_name, tiny_base(family=family))
        noise = [policy.draw_noise(seed) for seed in range(3)]
        flat = lambda n: torch.cat([torch.from_numpy(a).flatten().double() for a in policy.predict(steps, n).values()])
        plain = [flat(n) for n in noise]
        policy.accelerate()
        quick, again = [flat(n) for n in noise], flat(noise[-1])
        off, most = max(map(_apart, quick, plain)), 5e-2 if args.device == "cuda" else 1e-5
        row = dict(what=f"{family.name}, small, recorded against plain", actions=f"{off:.1e}")
        row |= dict(again_equal=torch.equal(again, quick[-1]), allowed=f"{most:.0e}")
        yield row | dict(ok=off <= most and row["again_equal"])


def correctness(args) -> Iterator[dict]:
    "The GPU's numbers against the CPU's float64; runs and recordings against themselves."
    with tempfile.TemporaryDirectory() as folder:
        for part in (_against_float64, _graph_answers, _goes_on):
            try: yield from part(args, Path(folder))
            except Exception as e: yield _failed(e)  # what the others find stays


# ----------------------------------------------------------------------------------------- training
FROZEN = dict(cache_features=True, augment=False, tune_top_llm_layers=0)  # what a cache asks for
SETTINGS = {
    "as the recipe has it": dict(global_batch_size=64),
    "the same, compiled": dict(global_batch_size=64, compile=True),
    "as one graph": dict(global_batch_size=64, step_graph=True),
    "compiled, as one graph": dict(global_batch_size=64, compile=True, step_graph=True),
    "deterministic": dict(global_batch_size=64, deterministic=True),
    "features from disk": dict(global_batch_size=64, **FROZEN),
    "batch 8": dict(global_batch_size=8),
    "batch 8, as one graph": dict(global_batch_size=8, step_graph=True),
    "--memory 24gb": dict(global_batch_size=8, memory="24gb"),
    "LoRA on language and DiT, --memory 16gb": dict(
        global_batch_size=4, lora_parts=["language", "DiT"], memory="16gb"
    ),
}

QUICK = "as the recipe has it", "as one graph"


def _released(folder: Path, device: str) -> Path:
    "A checkpoint of GR00T N1.6's released size, with random weights and a small vocabulary."
    tokenizer = train_tokenizer(TINY_SENTENCES)
    config, eagle = Gr00tN1d6Config.size("3b")
    eagle |= dict(image_token_index=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))
    with torch.device(device): model = Gr00tN1d6.from_config(config, eagle)
    processor = Gr00tProcessor(
        {},
        {},
        tokenizer=tokenizer,
        use_albumentations=True,
        shortest_image_edge=config.shortest_image_edge,
        crop_fraction=config.crop_fraction,
        max_state_dim=config.max_state_dim,
        max_action_dim=config.max_action_dim,
        max_action_horizon=config.action_horizon,
        apply_sincos_state_encoding=True,
        use_relative_action=True,
    )
    family_of(config).save(folder, model, processor)
    return folder


def _base(args) -> Path:
    "The checkpoint that training and inference begin with, made when it is asked for first."
    if args.size == "tiny": return tiny_base()
    if args.made is None:
        args.made = tempfile.TemporaryDirectory()
        _released(Path(args.made.name) / "base", args.device)
        _free()
    return Path(args.made.name) / "base"


class Watch(PhaseClock):
    "Seconds by phase after the first steps, in which kernels are compiled and memory is taken."

    def __init__(self, warm: int):
        super().__init__()
        self.warm, self.started, self.waited, self.trainer = warm, 0.0, 0.0, None

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step != self.warm: return
        self.take()
        self.started, self.waited = time.perf_counter(), self.trainer.data_seconds


def _operations(model, batch: dict, autocast: bool, device: str) -> int:
    "Floating-point operations of a forward and a backward pass, as the model needs them."
    counter = FlopCounterMode(display=False)
    with counter, torch.autocast(device, torch.bfloat16, enabled=autocast):
        model(batch)["loss"].backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def _profile(args, name: str, model, batch: dict, autocast: bool):
    "Adds the kernels of two steps, the longest first, to the file that was asked for."
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU] + [kinds.CUDA] * (args.device == "cuda")
    def step():
        with torch.autocast(args.device, torch.bfloat16, enabled=autocast):
            model(batch)["loss"].backward()
    step()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(2): step()
    key = "self_cuda_time_total" if args.device == "cuda" else "self_cpu_time_total"
    table = profile.key_averages().table(sort_by=key, row_limit=45, max_name_column_width=90)
    with open(args.profile, "a") as f: f.write(f"{name}\n{table}\n\n")
    model.zero_grad(set_to_none=True)


def _rate(args) -> float | None:  # operations a second, of the datasheet
    if args.device != "cuda": return None
    name = torch.cuda.get_device_name()
    return next((rate for word, rate in DATASHEET.items() if word in name), None)


def _train(args, name: str, base: Path, folder: Path, options: dict) -> dict:
    "Some steps with the kit's own trainer; what they took."
    cuda = args.device == "cuda"
    steps = args.warm + args.steps
    config = _sample_config(
        str(base),
        folder,
        "run",
        max_steps=steps,
        dataloader_num_workers=args.workers,
        frame_cache=True,
        **options,
    )
    prepared = prepare_data(fit_memory(config))
    config = prepared.config
    model = load_model(config, base, prepared.slots)
    arguments = training_arguments(config, prepared.family)
    arguments.save_strategy, arguments.logging_strategy = "no", "no"
    watch, begun = Watch(args.warm), time.perf_counter()
    samples = training_dataset(config, prepared)
    if config.cache_features: samples = as_features(samples, prepared.family, model, arguments)
    trainer = Gr00tTrainer(
        model,
        arguments,
        samples,
        prepared.processor,
        config.seed,
        config.global_batch_size,
        callbacks=[watch],
    )
    if config.step_graph: trainer.use_graphs()
    watch.trainer = trainer
    if cuda: torch.cuda.reset_peak_memory_stats()
    with deterministic(config.deterministic):
        if config.cache_features: look_first(trainer, StopOnSignal())
        trainer.train()
    if cuda: torch.cuda.synchronize()
    trainer.stop_loading()
    seconds = time.perf_counter() - watch.started
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else float("nan")
    reserved = torch.cuda.max_memory_reserved() / 1e9 if cuda else float("nan")
    phases = {k: 1000 * v / args.steps for k, v in watch.take().items()}
    batch = next(iter(trainer.get_train_dataloader()))
    batch.pop("skipped", None)
    operations = 0
    if not (config.compile or config.gradient_checkpointing):
        operations = _operations(model, batch, arguments.bf16, args.device)
    if args.profile: _profile(args, name, model, batch, arguments.bf16)
    step = seconds / args.steps
    return dict(
        batch=config.global_batch_size,
        step_ms=1000 * step,
        samples_per_second=config.global_batch_size / step,
        first_seconds=watch.started - begun,
        waiting=(trainer.data_seconds - watch.waited) / seconds,
        peak_gb=peak,
        reserved_gb=reserved,
        tokens=list(batch["input_ids"].shape),
        operations=operations,
        saves=saving(config),
        planned_gb=plan_prepared(prepared).peak / 1e9,
        weights=_bits(model),
        **{f"{k}_ms": v for k, v in phases.items()},
    )


def _bits(model) -> int:
    "A number that is another one as soon as one bit of a weight is."
    words = (p.detach().contiguous().view(-1).view(torch.int16) for p in model.parameters())
    return hash(tuple(int((w.long() * (1 + torch.arange(len(w), device=w.device) % 8191)).sum()) for w in words))


def _with_share(rows: list[dict], rate: float | None) -> list[dict]:
    "Model operations, of the first row's model where a row's were not counted, and the share of the card's rate."
    counted = next((r["operations"] / r["batch"] for r in rows if r.get("operations")), 0)
    for row in rows:
        if "step_ms" not in row: continue
        row["operations"] = row["operations"] or counted * row["batch"]
        if rate: row["mfu"] = row["operations"] / (row["step_ms"] / 1000) / rate
    return rows


def training(args) -> Iterator[dict]:
    "Steps of training in the released size."
    rows, base = [], _base(args)
    for name, options in SETTINGS.items():
        if args.rows and name not in args.rows: continue
        if args.quick and name not in (args.rows or QUICK): continue
        if options.get("deterministic") and args.device == "cuda" and CUBLAS not in os.environ: continue
        _free()
        if args.size == "tiny": options = options | dict(global_batch_size=4)
        with tempfile.TemporaryDirectory() as folder:
            found = _attempt(lambda: _train(args, name, base, Path(folder), options))
            if options.get("deterministic") and "weights" in found:
                again = _attempt(lambda: _train(args, name, base, Path(folder) / "again", options))
                found["ok"] = found["again_equal"] = again.get("weights") == found["weights"]
        found.pop("weights", None)
        rows.append(dict(what=name) | found)
        yield _with_share(rows, _rate(args))[-1]


# ---------------------------------------------------------------------------------------- inference
ANSWERS = {  # what a row does first
    "an answer": lambda policy: None,
    "an answer as one graph": lambda policy: policy.accelerate(),
    "an answer compiled, as one graph": lambda policy: policy.accelerate(compile=True),
}
QUESTIONS = (1, 1), (2, 1), (1, 8)  # cameras, robots
IMAGE_WORDS = dict(image_token_index="<IMG_CONTEXT>", image_token_id="<|image_pad|>")


def inference(args) -> Iterator[dict]:
    "Answers, four denoising steps: plain, as one graph, compiled and as one graph."
    sizes = [f for f in families() if f.released_name.endswith("-3b")]  # NVIDIA's
    if args.size == "tiny": sizes = families()[:1]
    for family in sizes:
        if args.families and family.released_name not in args.families: continue
        first = family is sizes[0]
        for cameras, robots in QUESTIONS[: None if first else 1]:
            if args.questions and f"{cameras}x{robots}" not in args.questions: continue
            with tempfile.TemporaryDirectory() as place:
                try: policy, one = _answering(args, Path(place), family, cameras)
                except Exception as e: yield dict(what=family.name) | _failed(e)
                else: yield from _ways(args, policy, one * robots, family.name, cameras)
            policy = None
            _free()


def _ways(args, policy, steps: list[dict], name: str, cameras: int) -> Iterator[dict]:
    "The same question, answered in each way."
    plain, noise = None, policy.draw_noise(0)
    for what, change in ANSWERS.items():
        if args.rows and what not in args.rows: continue
        if "compiled" in what and args.quick: continue
        found = _attempt(lambda: _answers(args, policy, change, steps, noise))
        answer = found.pop("answer", None)
        row = dict(what=f"{name}, {what}", cameras=cameras, robots=len(steps)) | found
        if plain is None: plain = answer
        elif answer is not None: row["from_plain"] = f"{_apart(answer, plain):.1e}"
        yield row


def _answering(args, folder: Path, family, cameras: int):
    "A policy of the released size with random weights, which are never on a disk."
    if args.size == "tiny": return _policy(args, folder, tiny_base(family=family), cameras)
    base = folder / "base"
    base.mkdir()
    family.save_outline(base)
    config = _sample_config(str(base), folder, "policy", cameras)
    prepared = prepare_data(config)
    outline = family.outline(base)
    vlm = dict(outline.vlm_config)
    word = next(k for k in IMAGE_WORDS if k in vlm)
    vlm[word] = prepared.processor.tokenizer.convert_tokens_to_ids(IMAGE_WORDS[word])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(args.device): model = family.model_class.from_config(outline.config, vlm)
    finally: torch.set_default_dtype(before)
    prepared.processor.save_pretrained(base)
    with patch.object(type(family), "load_model", lambda *_, **__: model.to(torch.bfloat16)):
        policy = Gr00tPolicy(prepared.root.tag, base, device=args.device)
    return policy, read_steps(prepared.root.dataset, 0, [0], prepared.root.modality_config)


def _policy(args, folder: Path, base: Path, cameras: int = 1) -> tuple[Gr00tPolicy, list[dict]]:
    "A policy of a base, and a step to ask about."
    config = _sample_config(str(base), folder, "policy", cameras)
    prepared = prepare_data(config)
    model = prepared.family.load_model(base, device=args.device)
    prepared.family.save(folder / "policy", model, prepared.processor)
    del model
    _free()
    policy = Gr00tPolicy(prepared.root.tag, folder / "policy", device=args.device)
    return policy, read_steps(prepared.root.dataset, 0, [0], prepared.root.modality_config)


def _answers(args, policy, change, steps: list[dict], noise) -> dict:
    "How long an answer takes, from a step of the data set to actions in the robot's units."
    begun = time.perf_counter()
    change(policy)
    answer = policy.predict(steps, noise)
    first = time.perf_counter() - begun
    for _ in range(3): policy.predict(steps, noise)  # the second proves a recording
    answer = policy.predict(steps, noise)
    seconds = []
    for _ in range(args.answers):
        begun = time.perf_counter()
        policy.predict(steps, noise)
        seconds.append(time.perf_counter() - begun)
    asked = [{k: v for k, v in s.items() if not k.startswith("action.")} for s in steps]
    def make():  # as the policy does: of frames that its recording scales, or of pictures
        seen = policy.graphs.read.seen(asked) if policy.graphs else None
        return policy.processor.collate(policy.processor.many(asked, policy.tag, seen=seen))
    batch = make()
    begun = time.perf_counter()
    for _ in range(20): make()
    ready = (time.perf_counter() - begun) / 20
    return dict(
        p50_ms=1000 * statistics.median(seconds),
        p95_ms=1000 * sorted(seconds)[int(0.95 * (len(seconds) - 1))],
        slowest_ms=1000 * max(seconds),
        processor_ms=1000 * ready,
        first_seconds=first,
        tokens=list(batch["input_ids"].shape),
        **_recorded(args, policy),
        answer=torch.cat([torch.from_numpy(a).flatten().double() for a in answer.values()]),
    )


def _recorded(args, policy) -> dict:
    "What a recording on a GPU is, and how long it takes by itself; its longest kernels to a file."
    played = policy.graphs and [r.played for r in policy.graphs.recordings.values()][-1]
    if args.device != "cuda" or not played: return {}
    start = played.replay._replay
    table = _kernels(start)
    if args.profile:
        with open(args.profile, "a") as f: f.write(f"{table}\n\n")
    cuts = {str(k): {n: round(1e6 * t) for n, t in v.items()} for k, v in played.cuts.items()}
    memory = round(torch.cuda.max_memory_reserved() / 1e9, 1)
    return dict(
        graph_ms=1000 * _median_seconds(start),
        calls=len(played.steps),
        functions=played.functions,
        reserved_gb=memory,
        cuts=json.dumps(cuts),
    )


def _kernels(run) -> str:
    "The longest kernels of a call."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    found = profile.key_averages()
    return found.table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=100)


# -------------------------------------------------------------------------------------------- frame
def _free():
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available(): torch.cuda.empty_cache()


def _attempt(run) -> dict:
    "What it gives, or why it failed."
    try: return run()
    except Exception as e: return _failed(e)


def _failed(e: Exception) -> dict:
    traceback.print_exception(e)
    return dict(failed=f"{type(e).__name__}: {' '.join(str(e).split())[:300]}", ok=False)


class TimeIsUp(BaseException):
    "No `Exception`: a row that catches its faults does not catch this."


@contextmanager
def _at_most(seconds: float):
    "`TimeIsUp` in what runs longer."
    def ring(*_): raise TimeIsUp
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _section(args, name: str, keep):
    "Runs a section; `keep(row)` takes each row at once."
    try:
        with _at_most(args.limit or LIMITS[name]):
            for row in SECTIONS[name](args): keep(row)
    except TimeIsUp: keep(dict(what="the section's time was up: rows that follow were not measured"))
    except Exception as e: keep(_failed(e))


def _shown(value) -> str:
    if isinstance(value, float): return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _line(row: dict) -> str: return "  ".join(f"{k} {_shown(v)}" for k, v in row.items())


def _table(rows: list[dict]) -> str:
    columns = list(dict.fromkeys(k for row in rows for k in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_shown(row[c]) if c in row else "" for c in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


SECTIONS = dict(machine=machine, correctness=correctness, inference=inference, training=training)
LIMITS = dict(machine=20, correctness=70, inference=250, training=140)  # seconds: eight minutes


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sections", "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes and few rows, a minute")
    parser.add_argument("--limit", type=float, help="seconds a section may take, instead of its own")
    parser.add_argument("--families", nargs="+", help="released names, such as n1.7-3b: answers of these alone")
    parser.add_argument("--questions", nargs="+", help="cameras x robots, such as 1x1: answers to these alone")
    parser.add_argument("--rows", nargs="+", choices=[*SETTINGS, *ANSWERS], help="these alone")
    parser.add_argument("--size", choices=("3b", "tiny"), default="3b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="that are measured")
    parser.add_argument("--answers", type=int, default=100, help="that are measured")
    parser.add_argument("--warm", type=int, default=5, help="steps before them")
    parser.add_argument("--workers", type=int, default=8, help="loader processes")
    parser.add_argument("--profile", type=Path, help="where the longest kernels of each row go")
    parser.add_argument("--json", type=Path, help="where all numbers go")
    args = parser.parse_args()
    args.made = None
    if args.device == "cuda" and not torch.cuda.is_available():
        print("No GPU is here: every section runs in small sizes on the CPU. Times say nothing of a GPU.")
        args.device, args.size, args.quick = "cpu", "tiny", True
    if args.quick: args.size, args.steps, args.warm, args.workers, args.answers = "tiny", 2, 1, 0, 6
    return args


def main():
    args, found = _arguments(), {}
    warnings.simplefilter("ignore")
    torch.backends.cuda.matmul.allow_tf32 = False
    for name in args.sections:
        _free()
        begun = time.perf_counter()
        rows = found.setdefault(name, [])
        def keep(row):
            rows.append(row)
            print(_line(row), flush=True)
            if args.json: args.json.write_text(json.dumps(found, indent=1))
        _section(args, name, keep)
        print(f"\n## {name}, {time.perf_counter() - begun:.0f} s\n\n{_table(rows)}\n", flush=True)
    wrong = [r for rows in found.values() for r in rows if r.get("ok") is False]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__": main()
