"A checkpoint's text files that somebody edited: a sentence that names file and fault, and no traceback."
import json
import shutil

import pytest
from batches import TAG

from gr00t_nb.errors import InputError
from gr00t_nb.evaluation.open_loop import evaluate_open_loop
from gr00t_nb.policy.policy import Gr00tPolicy

#: of each file what is put where; a place is keys with / between them, and TAG the robot
EDITS = {
    "processor_config.json": [
        ("", None), ("", []), ("", "text"),
        ("processor_kwargs", None), ("processor_kwargs", []), ("processor_kwargs", 3),
        ("processor_kwargs/modality_configs", None), ("processor_kwargs/modality_configs", [1]),
        ("processor_kwargs/modality_configs/TAG", None),
        ("processor_kwargs/modality_configs/TAG", ["state"]),
        ("processor_kwargs/modality_configs/TAG/state", None),
        ("processor_kwargs/modality_configs/TAG/state", "gone"),
        ("processor_kwargs/modality_configs/TAG/video", "gone"),
        ("processor_kwargs/modality_configs/TAG/language", "gone"),
        ("processor_kwargs/modality_configs/TAG/action", "gone"),
        ("processor_kwargs/modality_configs/TAG/state/modality_keys", "single_arm"),
        ("processor_kwargs/modality_configs/TAG/state/modality_keys", [1]),
        ("processor_kwargs/modality_configs/TAG/state/delta_indices", 0),
        ("processor_kwargs/modality_configs/TAG/action/delta_indices", ["x"]),
        ("processor_kwargs/modality_configs/TAG/action/action_configs", 3),
        ("processor_kwargs/modality_configs/TAG/state/mean_std_embedding_keys", 3),
        ("processor_kwargs/embodiment_ids", {"my_arm": "x"}), ("processor_kwargs/statistics", {}),
        ("processor_kwargs/max_state_dim", None), ("processor_kwargs/max_state_dim", "64"),
        ("processor_kwargs/max_action_dim", 1.5), ("processor_kwargs/max_action_horizon", 0),
        ("processor_kwargs/shortest_image_edge", "x"), ("processor_kwargs/crop_fraction", "x"),
        ("processor_kwargs/color_jitter_params", 3), ("processor_kwargs/formalize_language", "no"),
        ("processor_kwargs/random_rotation_angle", "x"),
        ("processor_kwargs/image_crop_size", 3), ("processor_kwargs/image_target_size", ["a", "b"]),
    ],
    "statistics.json": [
        ("", None), ("", []), ("TAG", None), ("TAG", "gone"), ("TAG/state", "x"), ("TAG/state", "gone"),
        ("TAG/state/single_arm", None), ("TAG/state/single_arm", "gone"),
        ("TAG/state/single_arm/std", "x"), ("TAG/state/single_arm/std", [0.5]),
        ("TAG/state/single_arm/std", ["x"] * 6), ("TAG/state/single_arm/max", [1.0] * 7),
        ("TAG/action/single_arm/min", [None] * 6), ("TAG/action/single_arm/q01", 0.5),
    ],
    "embodiment_id.json": [("", None), ("", []), ("TAG", "x"), ("TAG", None), ("TAG", -1), ("TAG", 1.5)],
    "config.json": [("", None), ("", [])],
}
EDITS["experiment_cfg/metadata.json"] = [
    (f"TAG/statistics{place.removeprefix('TAG')}", value) if place else (place, value)
    for place, value in EDITS["statistics.json"]
]


def edited(said, place: str, value):
    "What a file says, changed in one place; 'gone' takes it out."
    if not place: return value
    *path, last = [TAG if key == "TAG" else key for key in place.split("/")]
    inner = said
    for key in path: inner = inner[key]
    if value == "gone": inner.pop(last)
    else: inner[last] = value
    return said


def ask(folder, data):
    "Loads a checkpoint and asks it, which reads every file of it."
    policy = Gr00tPolicy(TAG, folder, device="cpu")
    evaluate_open_loop(policy, data, [0], steps=20)


@pytest.mark.parametrize("name", list(EDITS))
def test_an_edited_file_is_told_of(family, checkpoint, sample, tmp_path, name):
    if name not in family.files: pytest.skip("a file that this family does not have")
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    original = (folder / name).read_text()
    silent = []
    for place, value in EDITS[name]:
        (folder / name).write_text(json.dumps(edited(json.loads(original), place, value)))
        try: ask(folder, sample.data)
        except InputError as e: assert len(str(e)) > 30, (place, value, e)
        except Exception as e: silent.append((place, value, repr(e)))
        else: silent.append((place, value, "nothing was said"))
    assert not silent, "\n" + "\n".join(map(str, silent))
