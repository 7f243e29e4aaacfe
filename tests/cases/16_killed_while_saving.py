"""Isaac-GR00T 626af89/4c0662f (writers killed in mid-write), starVLA#162: a run died while it wrote
its first checkpoint. The next run in that folder must not publish the broken one.
"""
from case import end, finetune, sample, TMP
d = sample(1)
o = TMP / "out"
dead = o / ".unfinished/checkpoint-1"
dead.mkdir(parents=True)
(dead / "trainer_state.json").write_text('{"global_step": 1}')
(dead / "model.safetensors").write_bytes(b"half of it")
(dead / "config.json").write_text("{}")
rc, out, err = finetune(d, o, "--save-steps", 2)
there = sorted(p.name for p in o.glob("checkpoint-*"))
broken = [n for n in there if (o / n / "model.safetensors").stat().st_size < 1000]
end(
    rc == 0 and not broken,
    f"exit {rc}; checkpoints {there}"
    + (
        f"; {broken[0]} holds the {(o / broken[0] / 'model.safetensors').stat().st_size} bytes of"
        " the run that died"
        if broken
        else ""
    ),
)
