"""A notebook tries a second configuration file for NEW_EMBODIMENT, as people do who compare
settings (the official register refuses it, too). The advice given must work.
"""
from case import CONFIG, end, TMP
from gr00t_nb.embodiments import load_modality_config, MODALITY_CONFIGS
from gr00t_nb.errors import InputError
load_modality_config(CONFIG)
second, ok = TMP / "shorter.py", True
text = CONFIG.read_text().replace("range(16)", "range(8)")
second.write_text(text)
try:
    load_modality_config(second)
    said = "taken at once"
except InputError as e:
    first = str(e)
    second.write_text(
        text.replace("EmbodimentTag.NEW_EMBODIMENT)", "EmbodimentTag.NEW_EMBODIMENT, replace=True)")
    )
    try:
        load_modality_config(second)
        said = "taken with replace=True, as advised"
    except InputError as f:
        said, ok = (
            f"first: ...{first[-60:]} / then, with replace=True: {str(f).replace(str(TMP), '')}",
            False,
        )
end(ok and len(MODALITY_CONFIGS["new_embodiment"]["action"].delta_indices) == 8, said)
