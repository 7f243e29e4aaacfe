"""Isaac-GR00T#58, lerobot#2529: a data set cloned without Git LFS, every table and video a pointer
of 130 bytes. The message must name the cause, `git lfs pull`.
"""
from case import checkup, end, sample, TMP
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError
d = sample(2)
for f in [*d.rglob("*.parquet"), *d.rglob("*.mp4")]:
    f.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a" * 16 + "\nsize 48213\n"
    )
rc, out, err = checkup(d)
try:
    LeRobotDataset(d).state(0)
    said = ""
except InputError as e:
    said = str(e)
end(
    "lfs" in (out + err).lower() and "lfs" in said.lower(),
    f"check-up exit {rc}, mentions LFS: {'lfs' in (out + err).lower()}; reading:"
    f" {said.replace(str(TMP), '')[:220]}",
)
