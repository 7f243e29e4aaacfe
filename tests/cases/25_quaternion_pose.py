"""Isaac-GR00T#678: poses of position and quaternion, configured as a relative end effector. The
refusal must name the group and what to do with a quaternion (it holds 7 numbers).
"""
from case import end, finetune, last, read, sample, TMP, write
d = sample(1)
m = read(d / "meta/modality.json")
m["state"] = m["action"] = {"eef": {"start": 0, "end": 7}}
write(d / "meta/modality.json", m)
c = TMP / "robot.py"
c.write_text(
    "from gr00t_nb.embodiments import *\nfrom gr00t_nb.embodiments import"
    " register_modality_config\nregister_modality_config(dict(video=ModalityConfig([0], ['front',"
    " 'wrist']), state=ModalityConfig([0], ['eef']), action=ModalityConfig(range(16), ['eef'],"
    " action_configs=[ActionConfig(ActionRepresentation.RELATIVE, ActionType.EEF,"
    " ActionFormat.XYZ_ROT6D)]), language=ModalityConfig([0],"
    " ['annotation.human.task_description'])), EmbodimentTag.NEW_EMBODIMENT)\n"
)
rc, out, err = finetune(d, TMP / "out", config=c)
end(rc == 2 and "eef" in err and "quaternion" in err.lower(), f"exit {rc}: {last(err)}")
