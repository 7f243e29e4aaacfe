"""A generation that exists only here: one linear map from picture, state and words to a chunk.

It has none of the capabilities, so whoever needs one without asking `family.require` fails on it.
"""
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from gr00t_nb.families.family import Family, TrainingDefaults
from gr00t_nb.files import read_json, write_json
from gr00t_nb.model.checkpoints import load_weights, save_weights
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.processing.prompts import train_tokenizer

PATCHES = 4  # a picture is seen as 4 x 4 colours


@dataclass
class DummyConfig:
    vocab_size: int = 512
    width: int = 16
    max_state_dim: int = 64
    max_action_dim: int = 32
    action_horizon: int = 16
    tune_visual: bool = True
    tune_projector: bool = True

    @classmethod
    def from_dict(cls, values: dict):
        return cls(**{k: v for k, v in values.items() if k != "model_type"})

    def to_dict(self) -> dict: return asdict(self) | dict(model_type="Dummy")


class Dummy(nn.Module):
    def __init__(self, config: DummyConfig):
        super().__init__()
        self.config = config
        self.eye = nn.Linear(3 * PATCHES ** 2, config.width)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.state = nn.Linear(config.max_state_dim, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.chunk = nn.Linear(config.width, config.action_horizon * config.max_action_dim)
        self.set_trainable()

    def set_trainable(self, **flags):
        for name, value in flags.items(): setattr(self.config, name, value)
        self.requires_grad_(True)
        self.eye.requires_grad_(self.config.tune_visual)
        for part in (self.words, self.state, self.norm, self.chunk):
            part.requires_grad_(self.config.tune_projector)

    def answer(self, batch: dict) -> torch.Tensor:  # [B, H, D]
        kind = self.eye.weight
        put = lambda x: x.to(kind.device, kind.dtype)
        images = batch["pixel_values"]
        small = [self._patches(put(i / 127.5 - 1 if i.dtype == torch.uint8 else i)) for i in images]
        seen = self.eye(torch.cat(small)).unflatten(0, (len(batch["state"]), -1)).mean(1)
        mask = put(batch["attention_mask"])[..., None]
        told = (self.words(batch["input_ids"].to(kind.device)) * mask).sum(1) / mask.sum(1)
        felt = self.state(put(batch["state"]).mean(1))
        chunk = self.chunk(self.norm(seen + told + felt))
        return chunk.unflatten(-1, (self.config.action_horizon, self.config.max_action_dim))

    def _patches(self, images: torch.Tensor) -> torch.Tensor:  # [n, 3, h, w] -> [n, 48]
        return nn.functional.adaptive_avg_pool2d(images, PATCHES).flatten(1)

    def forward(self, batch: dict) -> dict:
        answer = self.answer(batch)
        mask = batch["action_mask"].to(answer)
        error = (answer - batch["action"].to(answer)).square() * mask
        counted = mask.sum()
        return dict(loss=error.sum() / counted, action_loss=error, counted=counted)

    @torch.no_grad()
    def get_action(self, batch, noise=None, num_inference_timesteps=None, keep_path=False) -> dict:
        answer = self.answer(batch)
        if noise is not None and noise.dim() == 4: answer = answer.expand(len(noise), *answer.shape)
        return dict(action_pred=answer)

    def save_pretrained(self, folder):
        save_weights(self.state_dict(), folder)
        write_json(Path(folder) / "config.json", self.config.to_dict())

    @classmethod
    def outline(cls, folder, **changes):
        config = DummyConfig.from_dict(read_json(Path(folder) / "config.json") | changes)
        with torch.device("meta"): return cls(config)

    @classmethod
    def from_pretrained(cls, folder, *, device="cpu", dtype=None, **changes):
        model = cls.outline(folder, **changes)
        kind = torch.float32 if dtype == "config" else dtype
        load_weights(model, folder, device=device, dtype=lambda name, stored: kind or stored)
        return model.eval()


class DummyFamily(Family):
    name, model_type, tiny_name = "the dummy", "Dummy", "tiny-dummy"
    config_class, model_class = DummyConfig, Dummy
    parts = dict(eye="eye.", head=("words.", "state.", "norm.", "chunk."))
    flags = dict(tune_visual=True, tune_projector=True)
    embodiment_ids = dict(new_embodiment=10)
    files = ("config.json", "processor_config.json", "statistics.json", "embodiment_id.json")
    defaults = TrainingDefaults(betas=(0.95, 0.999), wandb_project="finetune-dummy")

    def _parts(self):
        tokenizer = train_tokenizer(["put the red cube in the bowl"])
        return DummyConfig(vocab_size=len(tokenizer)), tokenizer

    def tiny_settings(self, seed=0):
        config, tokenizer = self._parts()
        return [config.to_dict(), seed, tokenizer.get_vocab()]

    def save_tiny(self, folder, seed=0):
        config, tokenizer = self._parts()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Dummy(config)
        processor = Gr00tProcessor(
            {},
            {},
            tokenizer=tokenizer,
            shortest_image_edge=84,
            max_state_dim=config.max_state_dim,
            max_action_dim=config.max_action_dim,
            max_action_horizon=config.action_horizon,
            use_relative_action=True,
        )
        self.save(folder, model, processor)


DUMMY = DummyFamily()
