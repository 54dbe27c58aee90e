"""Trains the demo model from scratch and writes the file that the package ships.

    python demo/train.py

Every stage uses the seed and one thread:

- tower: the vision tower learns to recognise form and colour in each image token.
- decoder: the base decoder learns to answer from words in place of a picture, and without them.
- doubt: the decoder learns to ignore any number of marked words.
- sight: tower and decoder are frozen. The projection learns to give the words of what a token shows. Then the
  projection and the LoRA for images learn to answer from the picture, several questions after one image.
- pack: writes the file.

Settings were tuned on held-out training pictures. The logs are in build/demo-model.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from decoder import load_decoder, train_decoder, train_doubt
from network import build
from safetensors.torch import load_file, save_file
from sight import train_sight
from stage import TRIAL, WORK, Effort, Stage
from tower import train_tower

from midsight.demo.seeing import PACKED


def pack(stage: Stage) -> None:
    """Writes the shipped file in bfloat16; this rounds the projection and the LoRA."""
    network = build(stage.ids, stage.seed)
    network.embed.img_processor.load_state_dict(load_file(stage.folder / "tower.safetensors"))
    load_decoder(network, stage.folder / "doubt.safetensors")
    sight, rows = load_file(stage.folder / "sight.safetensors"), network.table.rows.detach()
    network.model.load_state_dict({k: v for k, v in sight.items() if ".lora_" not in k}, strict=False)
    weights = {k: v for k, v in network.model.state_dict().items() if "embed_tokens.weight" not in k}
    weights.pop("lm_head.weight")
    weights |= {
        f"base_model.model.{name.replace('.vision.', '.')}": tensor
        for name, tensor in sight.items()
        if ".lora_" in name
    }
    stored = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in {**weights, "token_rows": rows}.items()}
    stored["token_ids"] = torch.tensor(network.table.token_ids, dtype=torch.int32)
    save_file(stored, stage.packed, metadata={"format": "pt"})
    stage.log(bytes=stage.packed.stat().st_size, sha256=hashlib.sha256(stage.packed.read_bytes()).hexdigest())


STAGES = {"tower": train_tower, "decoder": train_decoder, "doubt": train_doubt, "sight": train_sight, "pack": pack}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"some of {', '.join(STAGES)}; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="folder for logs and results of the stages")
    parser.add_argument("--packed", type=Path, help="file that pack writes; default: the shipped one")
    parser.add_argument("--trial", action="store_true", help="a few steps on a few pictures, in another folder")
    call = parser.parse_args()
    folder = call.folder or (WORK.with_name("demo-model-trial") if call.trial else WORK)
    packed = call.packed or (folder / PACKED.name if call.trial else PACKED)
    if unknown := set(call.stages) - set(STAGES):
        parser.error(f"{', '.join(sorted(unknown))}: the stages are {', '.join(STAGES)}.")
    for name in call.stages or STAGES:
        STAGES[name](Stage(name, call.seed, TRIAL if call.trial else Effort(), folder, packed))
