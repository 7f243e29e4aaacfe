"""FluxVLA's data: windows, merged statistics, samples, prompts, orders and inverses, against values that
its own code computed, on its synthetic recordings and on a real one of GR1.

Integers are equal, floats within 1e-5. Decoded pixels differ by the decoder: those are compared in
grey levels, and the arithmetic behind them on stored pixels.
"""
import itertools
import json
import os
import re
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file as stored_tensors

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError
from gr00t_nb.files import read_json
from gr00t_nb.fluxvla.fixed_prompts import fixed_ids, fluxvla_prompt, parquet_prompt, prompt_labels
from gr00t_nb.fluxvla.fluxvla_processor import FluxvlaProcessor, FluxvlaRobot
from gr00t_nb.fluxvla.merged_statistics import merged_statistics, read_fluxvla_statistics
from gr00t_nb.fluxvla.merged_statistics import statistics_of_roots, write_fluxvla_statistics
from gr00t_nb.fluxvla.numbers import fit_width, libero_gripper, libero_state, scale_numbers
from gr00t_nb.fluxvla.numbers import unscale_numbers
from gr00t_nb.fluxvla.pixels import FLUXVLA_MEAN, FLUXVLA_STD, normalize_pixels, pixel_constants
from gr00t_nb.fluxvla.pixels import squeeze
from gr00t_nb.fluxvla.window_samples import WindowOrder, fluxvla_order, fluxvla_robot
from gr00t_nb.fluxvla.window_samples import read_windows, row_texts
from gr00t_nb.fluxvla.windows import WindowRule, askable, row_kinds
from gr00t_nb.loading.order import DataSource
from gr00t_nb.processing.prompts import PromptEncoder, load_tokenizer

NUMBERS = 1e-5
GREY = 3  # levels by which two decoders may differ
DATA = "fluxvla/data"
STATE = "observation.state"
CAMERAS = [f"observation.images.{c}" for c in ("cam_high", "cam_left_wrist", "cam_right_wrist")]


def close(ours, theirs, what: str):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, what
    gap = np.abs(ours - theirs).max(initial=0)
    assert gap <= NUMBERS * max(1, np.abs(theirs).max(initial=0)), f"{what}: {gap}"


class Rows:
    "Rows of several data sets as FluxVLA counts them: one table."

    def __init__(self, paths, cameras=(), key=STATE, size=6, start=1):
        info = read_json(paths[0] / "meta/info.json")
        info["features"].setdefault(key, info["features"][STATE])  # a column that only the tables have
        modality, self.config = fluxvla_robot(info, cameras, key, size=size, start=start)
        self.sets = [LeRobotDataset(p, modality) for p in paths]
        self.places = [
            (s, e, t)
            for s, ds in enumerate(self.sets) for e in range(len(ds)) for t in range(ds.length(e))
        ]
        self.keys = self.config["action"].modality_keys

    def kinds(self, s, e, **how): return row_kinds(row_texts(self.sets[s], e, **how))

    def before(self, index):
        "The row before an episode."
        s, e, t = self.places[index]
        if index == t: return None
        s, e, t = self.places[index - t - 1]
        return {k: v[t] for k, v in self.sets[s].vectors(e, "action", self.keys).items()}

    def window(self, index, rule):
        s, e, t = self.places[index]
        before = self.before(index) if rule.use_delta else None
        return read_windows(self.sets[s], e, [t], self.keys, rule, before)[0]

    def step(self, index, rule):
        "A step as the loader hands it to a processor."
        s, e, t = self.places[index]
        ds, views = self.sets[s], self.config["video"].modality_keys
        seen = {f"video.{v}": ds.frames(e, v, [t]) for v in views}
        told = {self.config["language"].modality_keys[0]: row_texts(ds, e)[t]}
        numbers = {"state.proprio": ds.state(e)["proprio"][[t]]} | told
        return seen | numbers | self.window(index, rule)

    def raw(self, index, column):
        s, e, t = self.places[index]
        return self.sets[s].column(e, column)[t]


@pytest.fixture(scope="module")
def root(bundle): return bundle(f"{DATA}/datasets")


@pytest.fixture(scope="module")
def encoder(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    with zipfile.ZipFile(bundle("tokenizer_eagle2.zip")) as z: z.extractall(folder)
    return PromptEncoder(load_tokenizer(folder))


def paths_of(root, *names): return [root / n for n in names]


# ---- windows

FORMS = dict(
    w6_start1=(("aloha_a", "aloha_b"), STATE, WindowRule(6, 1, fluxvla=True)),
    w5_start0_delta=(("aloha_a", "aloha_b"), STATE, WindowRule(5, 0, True, fluxvla=True)),
    w4_delta=(("aloha_a", "aloha_b"), STATE, WindowRule(4, 1, True, fluxvla=True)),
    single_action_w5_start0=(("single_action",), "action", WindowRule(5, 0, fluxvla=True)),
)


def check_window(rows: Rows, index: int, rule: WindowRule, told: dict):
    "The row that is asked in the end, its window, and that a row without use is known as one."
    s, e, t = rows.places[index]
    assert askable(rows.kinds(s, e))[t] == (not told["resampled_to"])
    asked = (told["resampled_to"] or [index])[-1]
    s, e, t = rows.places[asked]
    ours = rows.window(asked, rule)
    assert (e, t) == (told["episode"], told["frame"])
    assert row_texts(rows.sets[s], e)[t] == told["task"]
    assert ours["step_mask"].tolist() == told["masks"]
    close(ours["action.action"], told["actions"], f"row {index}")
    return s, e, t


def test_windows(bundle, root):
    told = read_json(bundle(f"{DATA}/windows.json"))
    meta = read_json(bundle(f"{DATA}/meta.json"))
    meta |= meta["aloha_two_roots"]
    assert {k.rsplit(".", 1)[0] for k in told} == set(FORMS)
    for form, (names, key, rule) in FORMS.items():
        rows = Rows(paths_of(root, *names), key=key)
        if names == ("aloha_a", "aloha_b"):
            assert [[ds.length(e) for e in range(len(ds))] for ds in rows.sets] == meta["lengths"]
            good = [i for i, (s, e, t) in enumerate(rows.places) if askable(rows.kinds(s, e))[t]]
            assert (good, len(rows.places)) == (meta["good_indices"], meta["total_len"])
            numbers = [[ds.column(e, "task_index").tolist() for e in range(len(ds))] for ds in rows.sets]
            assert numbers == meta["task_rows"]
        for name in [n for n in told if n.rsplit(".", 1)[0] == form]:
            w = told[name]
            same = dict(episode=w["episode_index"], frame=w["frame_index"], masks=w["action_masks"])
            index = int(name.rsplit(".", 1)[1])
            s, e, t = check_window(rows, index, rule, w | same | dict(task=w["task_description"]))
            assert w["data_root"].endswith(names[s])
            close(rows.sets[s].column(e, "timestamp")[t], w["timestamp"], name)


def test_what_is_drawn_instead(root):
    "Rows without use are replaced by good ones of the same recordings, the same ones each time."
    rows = Rows(paths_of(root, "aloha_a"))
    order = WindowOrder([DataSource(rows.sets[0], "new_embodiment", rows.config)], seed=5)
    where = order(range(3 * len(order)))
    assert all(askable(rows.kinds(0, e))[t] for _, e, t in where)
    assert np.array_equal(where, order(range(3 * len(order))))
    epochs = where.reshape(3, -1, 3)
    lost = len(rows.places) - len({tuple(w) for w in epochs[0].tolist()})
    assert lost == sum((~askable(rows.kinds(0, e))).sum() for e in range(3))  # each other row comes


def whole_v3(source, folder):
    "The recording in version 3.0, whose metadata do not say in which file an episode lies: in the only one."
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    for p in [folder, *folder.rglob("*")]: p.chmod(0o755 if p.is_dir() else 0o644)
    (file,) = (folder / "meta/episodes").rglob("*.parquet")
    table = pq.read_table(file)
    nought = pa.array([0] * len(table))
    for name in ("data/chunk_index", "data/file_index"): table = table.append_column(name, nought)
    pq.write_table(table, file)
    return folder


def test_windows_of_version_3(bundle, tmp_path):
    told = read_json(bundle("fluxvla/extra/v3_windows.json"))
    path = whole_v3(bundle("fluxvla/extra/datasets") / "v3", tmp_path / "v3")
    for form, windows in told["windows"].items():
        size, start, key, delta = re.match(r"W=(\d+),start=(\d+),key=(.+),delta=(\w+)", form).groups()
        rows = Rows([path], key=key)
        ds = rows.sets[0]
        assert [ds.length(e) for e in range(len(ds))] == told["lengths"]
        assert [ds.column(e, "task_index").tolist() for e in range(len(ds))] == told["task_rows"]
        assert list(ds.tasks.values()) == told["tasks"]
        rule = WindowRule(int(size), int(start), delta == "True", fluxvla=True)
        for index, w in windows.items(): check_window(rows, int(index), rule, w)
    names = {STATE: ["proprio"]}
    made = merged_statistics(rows.sets, [STATE, "action", "timestamp"], names, fluxvla_statistics=True)
    check_statistics(made, told["statistics"])


def test_iteration_order(bundle):
    told = read_json(bundle(f"{DATA}/iteration_order.json"))
    for name, parts in told.items():
        said = dict(p.split("=") for p in name.split(","))
        world, workers = int(said["world"]), int(said["workers"])
        how = dict(shuffle=said["shuffle"] == "True", reshuffle=said["reshuffle_each_epoch"] == "True")
        assert len(parts) == world * max(1, workers)
        for part, expected in parts.items():
            rank, worker = map(int, re.match(r"rank(\d+)_worker(\d+)", part).groups())
            places = dict(rank=rank, world_size=world, worker=worker, workers=max(1, workers))
            order = fluxvla_order(int(said["N"]), int(said["seed"]), **places, **how)
            assert list(itertools.islice(order, len(expected))) == expected, f"{name} {part}"


# ---- statistics

def check_statistics(ours: dict, theirs: dict):
    assert {n: list(s) for n, s in ours.items()} == {n: list(s) for n, s in theirs.items()}
    for name, keys in theirs.items():
        for key, entries in keys.items():
            assert set(ours[name][key]) == set(entries)
            for entry, values in entries.items():
                mine = ours[name][key][entry]
                assert (mine is None) == (values is None), f"{key} {entry}"
                if values is not None: close(mine, values, f"{name} {key} {entry}")


KEYS = [STATE, "observation.eepose", "timestamp"]
NAMES = {STATE: ["proprio", "action"]}
MERGED = dict(
    list_two_roots_one_dataset=("aloha_a", "aloha_b"),
    list_two_datasets=("aloha_a", "aloha_b"),
    single_dict=("aloha_a",),
    no_quantiles=("aloha_noq",),
    no_count=("aloha_nocount",),
    dim_16=("aloha_a",),
    statistic_name_libero=("aloha_a",),
    single_action_names=("single_action",),
)


def test_merged_statistics(bundle, root, tmp_path):
    told = read_json(bundle(f"{DATA}/statistics.json"))
    assert set(told) == {*MERGED, "grouped"}
    for form, names in MERGED.items():
        sets, given = Rows(paths_of(root, *names)).sets, dict(fluxvla_statistics=True)
        keys, mapped = (KEYS, NAMES)
        if form == "single_action_names":
            keys, mapped = [STATE, "timestamp", "action"], {STATE: ["proprio"]}
        if form == "dim_16": given["dim"] = 16
        (name,) = told[form]
        check_statistics(merged_statistics(sets, keys, mapped, name, **given), told[form])
    files = bundle(f"{DATA}/stat_files")
    for group, names in dict(grp_a=("aloha_a",), grp_b=("aloha_b",)).items():
        sets = Rows(paths_of(root, *names)).sets
        made = merged_statistics(sets, KEYS, NAMES, fluxvla_statistics=True)
        check_statistics(made, told["grouped"][group])
        written = write_fluxvla_statistics(tmp_path, made, group)
        check_statistics(read_json(written), read_json(files / written.name))
    both = read_fluxvla_statistics(files, "private")
    check_statistics(dict(private=both), told["list_two_datasets"])


def test_right_statistics_are_those_of_the_rows(root):
    "FluxVLA's spread is this one by the root of the number of dimensions."
    sets = Rows(paths_of(root, "aloha_a", "aloha_b")).sets
    right = merged_statistics(sets, [STATE])["private"][STATE]
    theirs = merged_statistics(sets, [STATE], fluxvla_statistics=True)["private"][STATE]
    rows = np.concatenate([ds.column(e, STATE) for ds in sets for e in range(len(ds))]).astype(np.float64)
    for entry, values in dict(mean=rows.mean(0), std=rows.std(0), min=rows.min(0)).items():
        close(right[entry], values, entry)
    close(right["q01"], np.quantile(rows, 0.01, axis=0), "q01")
    close(np.array(theirs["std"]) * np.sqrt(rows.shape[1]), right["std"], "std")


# ---- prompts

def ids_of(said: list) -> np.ndarray: return np.repeat(*np.array(said).T)


def test_prompts(bundle, encoder):
    "Token for token; a prompt that FluxVLA cuts is refused, and its end is what FluxVLA keeps."
    told, cut = read_json(bundle(f"{DATA}/prompts.json")), 0
    for name in [n for n in told if n.isdigit()]:
        case, options = told[name], told[name]["options"]
        text = fluxvla_prompt(
            case["task"],
            case["num_images"],
            add_system=options.get("add_system", True),
            add_assistant_stub=options.get("add_assistant_stub", True),
            task_first=options.get("task_pos") == "before_images",
            ends=options.get("front_eos_repeat", 0),
        )
        ids, side = encoder.ids(text), options.get("padding_side", "left")
        if case["max_len"] and len(ids) > case["max_len"]:
            with pytest.raises(InputError, match="would be lost"): fixed_ids(encoder, text, case["max_len"])
            assert ids[-case["max_len"]:].tolist() == ids_of(case["tokens_rle"]).tolist()
            cut += 1
            continue
        ids, mask = fixed_ids(encoder, text, case["max_len"], side)
        assert ids.tolist() == ids_of(case["tokens_rle"]).tolist(), name
        facts = dict(n_tokens=len(ids), mask_sum=mask.sum(), mask_first=mask[0], mask_last=mask[-1])
        facts |= dict(tokens_dtype=str(ids.dtype), masks_dtype=str(mask.dtype))
        if "labels_ignored" in case:
            facts["labels_ignored"] = (prompt_labels(ids, mask) == -100).sum()
            short = re.sub(r"(<IMG_CONTEXT>)+", "<256 x IMG_CONTEXT>", text)
            assert short == case["text_without_image_context"]
        assert {k: case[k] for k in facts} == facts, name
    assert cut
    for task, text in told["parquet_prompter"].items(): assert parquet_prompt(task) == text
    for task, text in told["parquet_prompter_no_conversation_newline"].items():
        assert parquet_prompt(task, False, True) == text


# ---- pixels

def test_image_transforms(bundle):
    read_json(bundle(f"{DATA}/image_transforms.json"))
    t = stored_tensors(bundle(f"{DATA}/image_transforms.safetensors"))
    images = np.stack([squeeze(t[f"in.{i}"].transpose(1, 2, 0)) for i in range(3)])
    flat = images.transpose(0, 3, 1, 2).reshape(9, 224, 224)
    assert np.array_equal(flat[:, ::4, ::4], t["resized_sub4"])
    assert np.array_equal(flat[:, 100:116, 100:116], t["resized_crop"])
    for used in ((123.5, 116.0, 103.6), (58.3, 57.0, 57.3)), (FLUXVLA_MEAN, FLUXVLA_STD):
        z = normalize_pixels(images, pixel_constants([used[0]], [used[1]], 3)).reshape(9, 224, 224)
        gap = np.abs(z[:, ::4, ::4] - t["normalized_sub4"]).max()
        if used[0] is FLUXVLA_MEAN: assert gap <= NUMBERS
        else: assert gap > NUMBERS  # the rounded constants of the documents are others
    # the file keeps bytes without strides: channels last, and of the inputs every second one
    for kind, ratio in (("resized", False), ("resized_pad", True)):
        stored = t[f"small.{kind}_32x28"].reshape(32, 28, 9)
        for place, i in ((0, 0), (1, 2)):
            ours = squeeze(t["small.in"][i].transpose(1, 2, 0), (32, 28), keep_ratio=ratio)
            assert np.array_equal(ours, stored[..., 3 * place:3 * place + 3]), kind


def levels(normalised: np.ndarray) -> np.ndarray:  # (3 n, h, w) -> grey levels
    mean, std = (np.array(c)[None, :, None, None] for c in (FLUXVLA_MEAN, FLUXVLA_STD))
    return (normalised.reshape(-1, 3, *normalised.shape[-2:]) * (std + 1e-8) + mean)


# ---- whole samples

def processor_of(encoder, rows, robot, size, ids=0, max_len=900, **sizes) -> FluxvlaProcessor:
    constants = dict(pixel_means=[FLUXVLA_MEAN], pixel_stds=[FLUXVLA_STD])
    robots = dict(new_embodiment=FluxvlaRobot(**constants | robot))
    kept = dict(max_len=max_len, max_action_horizon=size, robots=robots) | sizes
    made = FluxvlaProcessor({}, {}, dict(new_embodiment=ids), encoder.tokenizer, **kept)
    statistics = statistics_of_roots(rows.sets, rows.config, fluxvla_statistics=True)
    made.set_embodiment("new_embodiment", rows.config, statistics)
    return made


def check_sample(processor, rows, index, stored, facts, size, start):
    "One sample, all that the reference keeps of it."
    rule = WindowRule(size, start, fluxvla=True)
    step = rows.step(index, rule)
    sample = processor(step, "new_embodiment")
    batch = processor.collate([sample])
    width, count = stored["states"].shape[0], stored["actions"].shape[1]
    close(sample["state"][0, :width], stored["states"], "states")
    close(sample["action"][:size, :count], stored["actions"], "actions")
    assert step["step_mask"].tolist() == stored["action_masks"].tolist()
    used = rows.sets[0].groups("action", rows.keys)["action"].width
    expected = stored["action_masks"][:, None] * (np.arange(sample["action"].shape[1]) < used)
    assert np.array_equal(sample["action_mask"], expected)
    assert batch["embodiment_id"].tolist() == stored["embodiment_ids"].tolist()
    assert batch["input_ids"][0].tolist() == stored["lang_tokens"].tolist()
    assert batch["attention_mask"][0].tolist() == stored["lang_masks"].tolist()
    assert len(sample["images"]) == len(stored["img_masks"]) and stored["img_masks"].all()
    pixels = batch["pixel_values"][0].numpy()
    gap = np.abs(levels(pixels)[..., ::8, ::8] - levels(stored["images_sub8"]))
    assert gap.max() <= GREY and gap.mean() < 0.5
    task = step[rows.config["language"].modality_keys[0]]
    assert facts["task_description"] == task
    assert facts["prompt"] == parquet_prompt(task)
    for column in {"timestamp", "observation.eepose"} & set(stored):
        close(np.ravel(rows.raw(index, column)), stored[column], column)
    back = processor.decode_action(sample["action"][None], "new_embodiment", {})["action"]
    gap = np.abs(back[0] - step["action.action"]).max()
    assert gap <= 1e-4, f"the inverse is off by {gap}"


ROBOTS = dict(
    aloha_mean_std={},
    aloha_quantile=dict(norm_type="quantile"),
    aloha_min_max=dict(norm_type="min_max"),
    aloha_none=dict(norm_type="none"),
    aloha_proprio=dict(norm_type="proprio"),
    aloha_seed_style_use_quantiles_False={},
    aloha_seed_style_use_quantiles_True={},
    aloha_mask=dict(norm_mask=[i not in (6, 13) for i in range(14)]),
)


def samples_of(tensors: dict) -> dict[str, dict]:
    "'aloha_none.1' -> its arrays."
    out = {}
    for key, value in tensors.items():
        if found := re.match(r"(.+?\.\d+)\.(.+)", key): out.setdefault(found[1], {})[found[2]] = value
    return out


def told_sizes(arrays: dict) -> dict:
    "Row of the model's table and length of prompts, as a sample has them."
    return dict(ids=int(arrays["embodiment_ids"].ravel()[0]), max_len=len(arrays["lang_tokens"]))


def test_samples(bundle, root, encoder):
    told = read_json(bundle(f"{DATA}/samples.json"))
    stored = samples_of(stored_tensors(bundle(f"{DATA}/samples.safetensors")))
    assert {n.rsplit(".", 1)[0] for n in stored} == {*ROBOTS, "single_action_libero_style"}
    aloha = Rows(paths_of(root, "aloha_a", "aloha_b"), CAMERAS, size=32)
    libero = Rows(paths_of(root, "single_action"), CAMERAS[:2], "action", size=10, start=0)
    for name, arrays in stored.items():
        form, index = name.rsplit(".", 1)
        if form in ROBOTS: rows, robot, start = aloha, ROBOTS[form], 1
        else: rows, robot, start = libero, dict(norm_type="quantile"), 0
        size = len(arrays["action_masks"])
        processor = processor_of(encoder, rows, robot, size, **told_sizes(arrays))
        check_sample(processor, rows, int(index), arrays, told[name], size, start)


def test_decoded_frames_and_padding_images(bundle, root, encoder):
    stored = stored_tensors(bundle(f"{DATA}/samples.safetensors"))
    said = read_json(bundle(f"{DATA}/samples.json"))["process_parquet_inputs"]
    theirs, masks = (stored[f"process_parquet_inputs.{n}"] for n in ("images", "img_masks"))
    rows = Rows(paths_of(root, "aloha_a"), CAMERAS, size=4)
    s, e, t = rows.places[said["index"]]
    ours = np.concatenate([rows.sets[s].frames(e, v, [t]) for v in rows.config["video"].modality_keys])
    gap = np.abs(ours.astype(int) - theirs[masks].transpose(0, 2, 3, 1).astype(int)).max()
    assert gap <= GREY
    processor = processor_of(encoder, rows, dict(padding_images=said["num_padding_imgs"]), 4, max_len=1200)
    images = processor(rows.step(said["index"], WindowRule(4)), "new_embodiment")["images"]
    assert len(images) == len(masks)
    for image, real in zip(images, masks): assert bool(image.any()) == bool(real)


# ---- and back

def test_inverses(bundle):
    told = read_json(bundle(f"{DATA}/normalize.json"))
    t = stored_tensors(bundle(f"{DATA}/normalize.safetensors"))
    private = read_fluxvla_statistics(bundle(f"{DATA}/stat_files"))["action"]
    for key in [k for k in t if k.startswith(("private.", "private32."))]:
        form, mode = key.split(".")
        if mode == "in": continue
        mask = [True] * 13 + [False] if mode.endswith("mask_last_false") else None
        y = unscale_numbers(t[f"{form}.in"][0], private, mode.removesuffix("_mask_last_false"), mask)
        close(y, t[key], key)
    ((_, libero),) = told["libero_stats"].items()
    for mode in ("mean_std", "min_max", "quantile"):
        y = unscale_numbers(t["libero.in"], libero["action"], mode)
        close(libero_gripper(y), t[f"libero.{mode}"], mode)
        state = libero_state(*(t[f"libero_proprio.{n}"] for n in ("pos", "quat_xyzw", "gripper")))
        z = scale_numbers(state, libero["proprio"], mode)
        z = z if mode == "mean_std" else np.clip(z, -1, 1)
        close(fit_width(z, 64), t[f"libero_proprio.{mode}"], f"proprio {mode}")
    rest = {k.split(".")[0] for k in t} - {"private", "private32", "libero", "libero_proprio"}
    assert rest == {"resample", "rtc_weights"}  # of chunks that follow each other: no matter of data


def test_private_inference(bundle, encoder):
    "One observation of a robot, as it arrives without a data set."
    told = read_json(bundle("fluxvla/extra/private_inference.json"))
    t = stored_tensors(bundle("fluxvla/extra/private_inference.safetensors"))
    frames, qpos = t["in.images_hwc"], t["in.qpos"]
    shape = dict(dtype="video", shape=[*frames.shape[1:]])
    features = {STATE: dict(dtype="float32", shape=[len(qpos)])} | dict.fromkeys(CAMERAS, shape)
    _, config = fluxvla_robot(dict(features=features), CAMERAS, size=32)
    statistics = dict(state=dict(proprio=told["stats"]["private"]["proprio"]))
    statistics["action"] = dict(action=told["stats"]["private"]["action"])
    for mode in ("mean_std", "quantile"):
        theirs = {k.split(".", 1)[1]: v for k, v in t.items() if k.startswith(f"{mode}.")}
        said = encoder.tokenizer.decode(theirs["lang_tokens"][0])
        task = re.search(r"</img>([^<]*)<\|im_end\|>", said)[1]
        robot = FluxvlaRobot(mode, pixel_means=[FLUXVLA_MEAN], pixel_stds=[FLUXVLA_STD])
        ids = dict(new_embodiment=int(theirs["embodiment_ids"][0]))
        kept = dict(max_len=theirs["lang_tokens"].shape[1], robots=dict(new_embodiment=robot))
        processor = FluxvlaProcessor({}, {}, ids, encoder.tokenizer, **kept)
        processor.set_embodiment("new_embodiment", config, statistics)
        views = config["video"].modality_keys
        step = {f"video.{v}": f[None] for v, f in zip(views, frames)}
        step[config["language"].modality_keys[0]] = task
        batch = processor.collate([processor(step | {"state.proprio": qpos[None]}, "new_embodiment")])
        close(batch["state"][:, 0], theirs["states"], mode)
        pixels = batch["pixel_values"][0].numpy().reshape(1, 9, 224, 224)[..., ::8, ::8]
        close(pixels, theirs["images"], mode)
        for ours, name in (("input_ids", "lang_tokens"), ("attention_mask", "lang_masks")):
            assert torch.equal(batch[ours], torch.from_numpy(theirs[name]).long())
        assert theirs["img_masks"].all() and theirs["img_masks"].shape[1] == len(frames)


# ---- a real recording

@pytest.fixture(scope="module")
def gr1(bundle, reference, tmp_path_factory):
    "GR1's data and videos with the metadata of version 2.1."
    source = reference.parent / "datasets/gr1.PickNPlace"
    if not source.is_dir(): pytest.skip(f"{source} is absent")
    folder = tmp_path_factory.mktemp("gr1")
    os.symlink(bundle(f"{DATA}/real_gr1_v21") / "meta", folder / "meta")
    for part in ("data", "videos"): os.symlink(source / part, folder / part)
    return Rows([folder], ["observation.images.ego_view"], "action", size=16, start=0)


def test_real_statistics(bundle, gr1):
    told = json.loads((bundle(f"{DATA}/real_gr1_v21") / "dataset_statistics_expected.json").read_text())
    names = {STATE: ["proprio"]}
    made = merged_statistics(gr1.sets, [STATE, "timestamp", "action"], names, fluxvla_statistics=True)
    check_statistics(made, told)


def test_real_samples(bundle, gr1, encoder):
    folder = bundle(f"{DATA}/real_gr1_v21")
    told = read_json(folder / "samples.json")
    stored = samples_of(stored_tensors(folder / "samples.safetensors"))
    for name, arrays in stored.items():
        mode, index = name.split(".")
        sizes = told_sizes(arrays) | dict(max_action_dim=64)
        processor = processor_of(encoder, gr1, dict(norm_type=mode), 16, **sizes)
        check_sample(processor, gr1, int(index), arrays, told[name], 16, 0)
