"Frames that are scaled inside a recording: answers are those to pictures that the processor makes, to the bit."
import cv2
import numpy as np
import pytest
import torch
from batches import TAG

from gr00t_nb.cosmos.patches import QWEN3_VL_PATCHES
from gr00t_nb.policy.frames_inside import frame_scaling
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.processing.images import transform_many

SMALL, OTHER, LARGE, UNSURE = (63, 84), (60, 80), (105, 105), (240, 320)  # height and width of a camera


@pytest.fixture(scope="module")
def policy(family, checkpoint): return Gr00tPolicy(TAG, checkpoint, device="cpu")


def seen_by(steps: list[dict], *sizes) -> list[dict]:
    "The steps with the frames of each camera in another size."
    def scaled(step):
        views = zip((k for k in step if k.startswith("video.")), sizes)
        return {k: np.stack([cv2.resize(f, size[::-1]) for f in step[k]]) for k, size in views}
    return [s | scaled(s) for s in steps]


def ask(policy, questions, inside: bool, compile=None) -> tuple[list[dict], int]:
    "Every question three times, for it is traced, proven and played; and how many recordings there are."
    policy.accelerate()
    assert not policy.graphs.read.used  # on a CPU
    policy.graphs.compile, policy.graphs.read.used = compile, inside
    try:
        found = [policy.predict(q, policy.draw_noise(0)) for q in questions for _ in range(3)]
        assert all(r.proven for r in policy.graphs.recordings.values())
        return found, len(policy.graphs.recordings)
    finally: policy.graphs = None


@pytest.mark.parametrize("compile", [None, lambda module: module], ids=["kernels", "joined runs"])
def test_answers_are_the_same(policy, sample, compile):
    "One robot and three, cameras of one size and of two, and a size that only the processor scales."
    one, three = sample.steps[:1], sample.steps[:3]
    sizes = ((one, SMALL, SMALL), (one, UNSURE, SMALL), (three, LARGE, OTHER), (one, OTHER, OTHER))
    questions = [seen_by(steps, *both) for steps, *both in sizes]
    (plain, few), (inside, many) = (ask(policy, questions, i, compile) for i in (False, True))
    settings = policy.processor.image_settings
    covered = [frame_scaling(*size, **settings) is not None for size in (SMALL, OTHER, LARGE, UNSURE)]
    assert covered in ([True, True, True, False], [False] * 4)
    assert (few, many) == ((2, 4) if any(covered) else (2, 2))  # a size of frames is a shape of question
    for a, b in zip(plain, inside):
        for group in a: np.testing.assert_array_equal(a[group], b[group], err_msg=group)


def test_recorded_actions_are_no_part_of_a_question(policy, sample):
    steps, noise = sample.steps[:2], policy.draw_noise(0)
    bare = [{k: v for k, v in s.items() if not k.startswith("action.")} for s in steps]
    assert len(bare[0]) < len(steps[0])
    broken = [s | {k: v[:, :1] for k, v in s.items() if k.startswith("action.")} for s in steps]
    found = [policy.predict(s, noise) for s in (steps, bare, broken)]
    for other in found[1:]:
        for group, a in found[0].items(): np.testing.assert_array_equal(a, other[group])


def test_levels_are_the_processors():
    "Sizes drawn at random, released settings and others; noise on which no scaling was proven."
    rng, covered = np.random.default_rng(7), 0
    for k in range(60):
        edge, fraction = int(rng.integers(28, 260)), float(rng.choice([0.8, 0.9, 0.95, 1.0]))
        height, width = rng.integers(8, 420, 2).tolist()
        if k % 3 == 0: edge, fraction = 256, 0.95
        if k % 4 == 0: height = width
        settings = dict(shortest_image_edge=edge, crop_fraction=fraction, use_albumentations=True)
        if k % 5 == 0: settings["patches"] = QWEN3_VL_PATCHES
        if int(edge * fraction) < 1 or (scaling := frame_scaling(height, width, **settings)) is None: continue
        covered += 1
        levels = ((0, 255), (254, 255), range(256))[k % 3]
        noise = rng.choice(np.array(levels, np.uint8), (2, height, width, 3))
        theirs = transform_many(noise, [None] * 2, 1, **settings)
        made = scaling(torch.from_numpy(noise)).numpy()
        np.testing.assert_array_equal(made, theirs, err_msg=f"{height}x{width}, {settings}")
        assert scaling.size == made.shape[1:3]
    assert covered > 15


def test_a_library_that_rounds_otherwise_is_not_imitated(monkeypatch):
    "One level that differs from what is computed here, and the processor scales."
    settings = dict(shortest_image_edge=50, crop_fraction=0.9, use_albumentations=True)
    assert frame_scaling(30, 40, **settings) is not None
    real = cv2.resize
    def another(*args, **how):
        made = real(*args, **how)
        made[0, 0, 0] ^= 1
        return made
    monkeypatch.setattr(cv2, "resize", another)
    assert frame_scaling(30, 41, **settings) is None
