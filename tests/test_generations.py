"The table of generations, in README and in the first tutorial, says what the families are."
import json
import re
from pathlib import Path

import pytest

from gr00t_nb.checkpoints.base_models import resolve_base_model, tiny_family
from gr00t_nb.checkpoints.registry import families
from gr00t_nb.settings.checks import SWITCHES
from gr00t_nb.tag_tables import GENERATION_LIMITS

ROOT = Path(__file__).resolve().parents[1]


def texts() -> dict[str, str]:
    cells = json.loads((ROOT / "nbs/tutorials/00_first_policy.ipynb").read_text())["cells"]
    return dict(readme=(ROOT / "README.md").read_text(), tutorial="\n\n".join("".join(c["source"]) for c in cells))


def table(text: str) -> dict[str, list[str]]:
    "The rows behind the heading, by their first cell."
    block = next(b for b in text.split("### Which generation?")[1].split("\n\n") if b.startswith("|"))
    rows = re.findall(r"^\|(.*)\|$", block, re.M)
    cells = [[c.strip() for c in r.split("|")] for r in rows]
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize("where", ["readme", "tutorial"])
def test_the_table_is_the_families(where):
    said = table(texts()[where])
    for column, name in enumerate(said[""]):
        family = next(f for f in families() if f.name == f"GR00T {name}")
        row = {k: v[column] for k, v in said.items()}
        base = resolve_base_model(family.released_name, weights=False)
        whole, trained = family.count_parameters(family.outline(base, **_official(family)))["total"]
        assert row["parameters"] == f"{whole / 1e9:.3g} B"
        assert row["of these trained, if nothing else is said"] == f"{trained / 1e9:.3g} B"
        limits = family.limits(base)
        assert GENERATION_LIMITS[family.name] == limits
        assert row["steps of a chunk, at most"] == str(limits["max_horizon"])
        widths = f"{limits['max_state_dim']}, {limits['max_action_dim']}"
        assert row["numbers of a state, of an action, at most"] == widths
        assert row["`--tokenizer-path`"] == f"`{family.tokenizer}`"
        assert all(tiny_family(n) is family for n in re.findall("`([^`]+)`", row["a small one for CPUs"]))
        padding = row["an answer depends on its prompt's padding"]
        assert padding.startswith("yes") == ("padding_matters" in family.capabilities)
        assert ("--mask-padding" in padding) == ("mask_padding" in family.capabilities)


def _official(family) -> dict:
    "What a run sets if nobody says anything."
    return {k: v for k, v in family.flags.items() if k in SWITCHES}


def test_both_places_say_the_same():
    assert len({json.dumps(table(t)) for t in texts().values()}) == 1


def test_every_generation_has_its_limits_in_the_table():
    "A variant of a generation, such as one with PaliGemma, is asked itself where it is the base model."
    named = {f.name.partition(" with ")[0] for f in families() if f.name.startswith("GR00T")}
    assert {*GENERATION_LIMITS} == named
