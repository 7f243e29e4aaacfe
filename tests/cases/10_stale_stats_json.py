"""Isaac-GR00T 4c0662f, starVLA#192: angles were converted from degrees to radians, meta/stats.json
stayed behind. Training must use statistics of the data, or say so.
"""
from case import end, finetune, read, sample, TMP, write
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.processing.statistics import dataset_statistics
d = sample(2)
s = dataset_statistics(LeRobotDataset(d))
write(
    d / "meta/stats.json",
    {c: {k: [57.29578 * x for x in v] for k, v in e.items()} for c, e in s.items()},
)
rc, out, err = finetune(d, TMP / "out")
used = (
    read(TMP / "out/statistics.json")["new_embodiment"]["state"]["single_arm"]["max"][0]
    if rc == 0
    else None
)
true = s["observation.state"]["max"][0]
told = "stats.json" in out + err
end(
    rc != 0 and told or used is not None and abs(used - true) < 1e-3 or told,
    f"exit {rc}: trained with a maximum of {used:.3g} rad for a joint that goes to {true:.3g}, and"
    " said nothing of meta/stats.json",
)
