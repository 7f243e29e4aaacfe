"""What the arm of `cube_to_bowl` is: the modality configuration a user writes for a robot the kit does not know.

Running this file registers it for the tag NEW_EMBODIMENT. `load_modality_config` and the option
`--modality-config-path` run it, here and in NVIDIA's code: its names are NVIDIA's, and stand for
this kit's while it is read here.
"""
from gr00t.configs.data.embodiment_configs import register_modality_config
from gr00t.data.embodiment_tags import EmbodimentTag
from gr00t.data.types import ActionConfig, ActionFormat, ActionRepresentation, ActionType
from gr00t.data.types import ModalityConfig

cube_to_bowl = {
    "video": ModalityConfig(delta_indices=[0], modality_keys=["front", "wrist"]),
    "state": ModalityConfig(delta_indices=[0], modality_keys=["single_arm", "gripper"]),
    "action": ModalityConfig(
        delta_indices=list(range(16)),  # 16 steps at 20 Hz: the policy looks 0.8 s ahead
        modality_keys=["single_arm", "gripper"],
        action_configs=[
            # the arm: joint targets minus the joints now
            ActionConfig(
                rep=ActionRepresentation.RELATIVE,
                type=ActionType.NON_EEF,
                format=ActionFormat.DEFAULT,
            ),
            # the gripper: 0 closed, 1 open
            ActionConfig(
                rep=ActionRepresentation.ABSOLUTE,
                type=ActionType.NON_EEF,
                format=ActionFormat.DEFAULT,
            ),
        ],
    ),
    "language": ModalityConfig(
        delta_indices=[0], modality_keys=["annotation.human.task_description"]
    ),
}
register_modality_config(cube_to_bowl, EmbodimentTag.NEW_EMBODIMENT)
