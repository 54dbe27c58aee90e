"""Trains the demo model from scratch and writes the file that the package ships.

    python demo/train.py

Stages, each with its seed and one thread. tower: the vision tower names form and colour of what each image token
shows. decoder: the base decoder answers from words where a picture would stand, and without. doubt: it learns to pass
over any number of words that carry a mark. sight: both are frozen; the projection learns to say what a token shows,
then it and the LoRA for images learn to answer from the picture, several questions behind one image. pack: the file.
Choices were made on held-out training pictures, with the logs in build/demo-model.
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
    """Writes the file of the package, in bfloat16; the projection and the LoRA are rounded here."""
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
    parser.add_argument("stages", nargs="*", help=f"some of {', '.join(STAGES)}; else all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of logs and of what stages leave for the next one")
    parser.add_argument("--packed", type=Path, help="the file that pack writes; by default the package's")
    parser.add_argument("--trial", action="store_true", help="a few steps on a few pictures, in a folder of its own")
    call = parser.parse_args()
    folder = call.folder or (WORK.with_name("demo-model-trial") if call.trial else WORK)
    packed = call.packed or (folder / PACKED.name if call.trial else PACKED)
    if unknown := set(call.stages) - set(STAGES):
        parser.error(f"{', '.join(sorted(unknown))}: the stages are {', '.join(STAGES)}.")
    for name in call.stages or STAGES:
        STAGES[name](Stage(name, call.seed, TRIAL if call.trial else Effort(), folder, packed))
