"""Isaac-GR00T#654: few steps, many shards, in the official order. Trained, or refused before
anything is loaded.
"""
from case import end, finetune, last, sample, TMP
d = sample(1)
a = finetune(d, TMP / "a", "--sampling", "official")
b = finetune(d, TMP / "b", "--sampling", "official", "--shard-size", 8)
end(
    a[0] == 0 and (b[0] == 0 or b[0] == 2 and "shard_size" in b[2] and "Traceback" not in b[2]),
    f"default {a[0]}, shard_size 8: {b[0]} {last(b[2])}",
)
