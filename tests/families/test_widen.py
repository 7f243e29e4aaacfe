"A wider base model: the robots that it knows are answered as before, whatever stands in the new places."
from dataclasses import replace

import numpy as np
import pytest
from batches import TAG

from gr00t_nb.checkpoints.base_models import base_limits
from gr00t_nb.checkpoints.manifest import broken_files
from gr00t_nb.checkpoints.widen import WidenConfig, main, widen
from gr00t_nb.errors import InputError
from gr00t_nb.policy.policy import Gr00tPolicy


def test_known_robots_are_answered_as_before(family, checkpoint, sample, tmp_path):
    limits = base_limits(checkpoint)
    width = limits.get("max_action_dim", 0)
    config = WidenConfig(str(checkpoint), str(tmp_path / "wide"), action=width + 40)
    if "widening" not in family.capabilities:
        with pytest.raises(InputError): widen(config)
        assert not (tmp_path / "wide").exists()
        return
    config = replace(config, state=limits["max_state_dim"] + 24)
    folder = widen(config)
    assert base_limits(folder) == limits | dict(max_state_dim=config.state, max_action_dim=config.action)
    assert not broken_files(folder)
    assert "from the same noise in their own places" in (said := (folder / "README.md").read_text())
    assert "A seed draws other noise for the wider action" in said
    old, wide = (Gr00tPolicy(TAG, p, device="cpu", round_inputs=False) for p in (checkpoint, folder))
    noise = wide.draw_noise(0)
    a, b = old.predict(sample.steps, noise[..., :width]), wide.predict(sample.steps, noise)
    for group, chunk in a.items():  # on the machines at hand to the bit
        np.testing.assert_allclose(b[group], chunk, rtol=0, atol=1e-5 * np.abs(chunk).max())


def test_a_seed_draws_the_same_noise_where_only_the_state_is_wider(family, checkpoint, sample, tmp_path):
    "And the README, which warns of a wider action, says nothing of it."
    if "widening" not in family.capabilities: pytest.skip("nothing to widen")
    state = base_limits(checkpoint)["max_state_dim"] + 24
    folder = widen(WidenConfig(str(checkpoint), str(tmp_path / "wide"), state=state))
    old, wide = (Gr00tPolicy(TAG, p, device="cpu", round_inputs=False) for p in (checkpoint, folder))
    a, b = (policy.predict(sample.steps, policy.draw_noise(0)) for policy in (old, wide))
    for group, chunk in a.items():
        np.testing.assert_allclose(b[group], chunk, rtol=0, atol=1e-5 * np.abs(chunk).max())
    assert "A seed draws other noise" not in (folder / "README.md").read_text()


def test_the_command_ends_with_a_sentence(checkpoint, family, tmp_path, capsys):
    if "widening" not in family.capabilities: pytest.skip("nothing to widen")
    flags = ["--base-model-path", str(checkpoint), "--output-dir", str(tmp_path / "wide")]
    with pytest.raises(SystemExit) as end: main([*flags, "--action", "1"])
    assert end.value.code == 2 and "never narrower" in capsys.readouterr().err
    main([*flags, "--state", str(base_limits(checkpoint)["max_state_dim"] + 1)])
    assert "give it as --base-model-path" in capsys.readouterr().out
