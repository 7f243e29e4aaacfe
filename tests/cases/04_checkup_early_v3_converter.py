"""lerobot#2401/#2941 and ec40ccde0: early converters wrote the episode that opens a new table as
lying in the old one, and let dataset_from_index restart. The check-up must end in a report.
"""
from case import checkup, end, last, sample, v3
def bug(R):
    R[2]["data/file_index"], at = 0, R[2]["length"]
    for r in R[3:]:
        r["dataset_from_index"], r["dataset_to_index"], at = at, at + r["length"], at + r["length"]
d = v3(sample(5), [[0, 1], [2, 3, 4]], {c: [[0, 1, 2, 3, 4]] for c in ("front", "wrist")}, bug)
rc, out, err = checkup(d)
end("Traceback" not in err and rc in (0, 1, 2), f"exit {rc}: {last(err) or last(out)}")
