"""Three episodes of PushT, run by an interpreter that has gym-pusht and no torch; the policy is asked over the network.

    python pusht_episodes.py PORT

Prints for each episode where the agent began and where it ended, and the length of its way.
"""
import json
import sys

import gym_pusht  # registers the environment
import gymnasium
import numpy as np

from gr00t_nb.serving.client import PolicyClient

CHUNKS, EXECUTED = 8, 8


def asked(seen: dict) -> dict:
    "What PushT shows, as a policy is asked: one robot, one moment."
    return dict(
        video=dict(top=seen["pixels"][None, None]),
        state=dict(agent=seen["agent_pos"].astype(np.float32)[None, None]),
        language=dict(task=[["push the T onto its place"]]),
    )


def main():
    env = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos", render_mode="rgb_array")
    episodes = []
    with PolicyClient(port=int(sys.argv[1]), timeout=100) as client:
        for seed in range(3):
            client.reset()
            seen, _ = env.reset(seed=seed)
            way = [seen["agent_pos"].tolist()]
            for _ in range(CHUNKS):
                actions, _ = client.get_action(asked(seen))
                for target in actions["agent"][0][:EXECUTED]:
                    seen, *_ = env.step(target)
                    way.append(seen["agent_pos"].tolist())
            episodes.append(dict(begin=way[0], end=way[-1], steps=len(way) - 1))
    env.close()
    foreign = sorted({"torch", "transformers"} & set(sys.modules))
    print(json.dumps(dict(episodes=episodes, foreign=foreign, simulator=gym_pusht.__name__)))


if __name__ == "__main__": main()
