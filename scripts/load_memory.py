"""Measures the figures in docs/checkpoints.md: the host memory that `midsight.load` takes at its peak.

Writes a checkpoint of 1.3 GB with random weights to a temporary folder, in the published format of Phi-4-multimodal
and in transformers' format. Loads each in new processes, on the CPU (Linux; reads /proc).
Run from the repository root: .venv/bin/python scripts/load_memory.py [--folder DIR]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import midsight

FORMATS = ("published", "transformers")
WAYS = (("bfloat16", "off"), ("bfloat16", "merged"), ("bfloat16", "unmerged"), ("float32", "merged"))
SHARD_BYTES = 500_000_000
LORA_RANK, SPEECH_RANK = 64, 80
SAMPLED_EVERY_S = 0.002
WIDTHS: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vision_config": {"hidden_size": 576, "intermediate_size": 2304, "num_hidden_layers": 12},
    "audio_config": {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_blocks": 16,
        "num_attention_heads": 8,
        "ext_pw_out_channel": 512,
        "depthwise_separable_out_channel": 512,
        "nemo_conv_channels": 512,
        "bias_max_distance": 500,
    },
}
"""Sizes that differ from the small random checkpoint."""
LAYERS = 16


# the checkpoints


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """Writes random weights of the same shapes in both formats; the other files are those of the small checkpoints."""
    from midsight.testing.phi4_multimodal import write_phi4_multimodal
    from midsight.testing.phi4mm import published_config, published_name, write_json, write_published_phi4mm

    config = wide_config()
    published, native = (folder / name for name in FORMATS)
    write_published_phi4mm(published)
    write_phi4_multimodal(native, layers=LAYERS, vision_heads=16)
    for old in (*published.glob("model*.safetensors*"), *native.glob("model*.safetensors*")):
        old.unlink()
    shapes = dict(weight_shapes(config))
    factors = {name: shape for base, shape in shapes.items() for name, shape in factor_shapes(base, shape)}
    write_shards({published_name(name): shape for name, shape in shapes.items()} | factors, published)
    write_shards(shapes, native)

    config.save_pretrained(native)
    raw = published_config(config.to_dict(), rank=LORA_RANK, alpha=2 * LORA_RANK)
    raw["speech_lora"] |= {"r": SPEECH_RANK, "lora_alpha": 2 * SPEECH_RANK}
    write_json(published / "config.json", raw)
    lora = {
        f"base_model.model.{name.replace('.vision.weight', '.weight')}": draw(name, shape)
        for name, shape in factors.items()
        if name.endswith(".vision.weight")
    }
    save(lora, native / "vision-lora" / "adapter_model.safetensors")
    path = native / "vision-lora" / "adapter_config.json"
    write_json(path, json.loads(path.read_text()) | {"r": LORA_RANK, "lora_alpha": 2 * LORA_RANK})
    return dict(zip(FORMATS, (published, native), strict=True))


def wide_config() -> Any:
    """The small checkpoint's config with larger sizes."""
    from transformers import Phi4MultimodalConfig

    from midsight.testing.phi4_multimodal import make_config

    config = make_config(LAYERS, 4096, 16).to_dict()
    for name, value in WIDTHS.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    factors = int(WIDTHS["hidden_size"] / WIDTHS["num_attention_heads"] * 0.75) // 2
    config["rope_parameters"] |= {"short_factor": [1.0] * factors, "long_factor": [8.0] * factors}
    return Phi4MultimodalConfig(**config)


def weight_shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Transformers' name and shape of every stored tensor, in transformers' order."""
    from transformers import Phi4MultimodalForCausalLM

    with torch.device("meta"):
        state = Phi4MultimodalForCausalLM(config).state_dict()
    return ((name, tuple(tensor.shape)) for name, tensor in state.items() if name != "lm_head.weight")


def factor_shapes(base: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Published name and shape of both LoRAs' factors for a weight; nothing for a weight without LoRA."""
    if base.startswith("model.layers.") and base.endswith("_proj.weight"):
        rows, columns = shape
        for task, rank in (("vision", LORA_RANK), ("speech", SPEECH_RANK)):
            yield base.replace(".weight", f".lora_A.{task}.weight"), (rank, columns)
            yield base.replace(".weight", f".lora_B.{task}.weight"), (rows, rank)


def write_shards(shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Draws the tensors and writes them to files of up to SHARD_BYTES, with one file in memory at a time."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in sorted(shapes.items()):
        size = 2 * torch.Size(shape).numel()
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save({name: draw(name, shape) for name, shape in shard.items()}, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": folder_bytes(folder)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random bfloat16 values."""
    generator = torch.Generator().manual_seed(len(name))
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file."""
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})


def folder_bytes(folder: Path) -> int:
    """Bytes of a folder's safetensors files."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


# measuring in one process


def status() -> dict[str, int]:
    """Memory of this process in bytes, by field of /proc/self/status.

    VmHWM is the peak, VmRSS the current size, RssAnon and RssFile are its parts.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: 1024 * int(value.split()[0]) for name, value in (line.split(":") for line in lines if " kB" in line)}


@contextmanager
def sampled_anonymous() -> Iterator[list[int]]:
    """Measures the largest RssAnon inside the context, as the only item of the list."""
    peak = [0]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLED_EVERY_S):
            peak[0] = max(peak[0], status()["RssAnon"])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def measure_load(folder: str, dtype: str, lora: Any) -> dict[str, float]:
    """Loads a folder in this process; returns memory in bytes, without that of the imports, and seconds."""
    before = status()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    started = time.perf_counter()
    with sampled_anonymous() as anonymous:
        model = midsight.load(folder, dtype=dtype, device="cpu", lora=lora)
    took = time.perf_counter() - started
    loaded = status()
    hf_model = model.loaded.hf_model
    tensors = {tensor.data_ptr(): tensor for tensor in (*hf_model.parameters(), *hf_model.buffers())}
    for tensor in tensors.values():
        tensor.sum()  # reads pages that are mapped but not in memory yet
    return {
        "model": sum(tensor.nbytes for tensor in tensors.values()),
        "peak": loaded["VmHWM"] - before["VmRSS"],
        "anonymous": anonymous[0] - before["RssAnon"],
        "after": loaded["VmRSS"] - before["VmRSS"],
        "used": status()["VmRSS"] - before["VmRSS"],
        "seconds": took,
    }


def measure_check(folder: str) -> dict[str, float]:
    """Reads the facts of a folder in this process, as `midsight check` does."""
    before = status()
    started = time.perf_counter()
    from midsight.check.facts import read_facts

    read_facts(folder)
    return {"peak": status()["VmHWM"] - before["VmRSS"], "seconds": time.perf_counter() - started}


def in_a_process(*arguments: str) -> dict[str, float]:
    """Runs this script in a new process and returns what it prints."""
    command = [sys.executable, __file__, *arguments]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  (our own)
    return json.loads(finished.stdout.splitlines()[-1])


# the table


def print_tables(folder: Path) -> None:
    """Writes the checkpoints, measures them, and prints the tables."""
    from midsight.testing import write_phi4_multimodal

    folders = write_checkpoints(folder)
    small = write_phi4_multimodal(folder / "small", vision_heads=16)
    libraries = in_a_process("--measure", str(small), "bfloat16", "merged")
    print(f"transformers' and PEFT's code, a checkpoint of 13 MB: peak {megabytes(libraries['peak'])} MB")
    print("MB, without imports and that code; in brackets: the anonymous part, the rest are mapped files")
    print(
        "format        dtype     LoRA      stored  shard  model  peak (anonymous)  after load  weights read  bound  s"
    )
    for name, path in folders.items():
        largest = max(file.stat().st_size for file in path.rglob("*.safetensors"))
        for dtype, lora in WAYS:
            found = in_a_process("--measure", str(path), dtype, lora)
            found = {
                name: value - libraries.get(name, 0.0) if name != "seconds" else value for name, value in found.items()
            }
            found["model"] += libraries["model"]
            print(
                f"{name:13} {dtype:9} {lora:9} {megabytes(folder_bytes(path)):>6} {megabytes(largest):>6} "
                f"{megabytes(found['model']):>6} {megabytes(found['peak']):>5} ({megabytes(found['anonymous'])})"
                f"{megabytes(found['after']):>14} {megabytes(found['used']):>13} "
                f"{megabytes(found['model'] + largest):>6}  {found['seconds']:.1f}",
                flush=True,
            )
    for name, path in folders.items():
        found = in_a_process("--check", str(path))
        print(f"midsight check, {name}: {found['seconds']:.1f} s, peak {megabytes(found['peak'])} MB")


def megabytes(size: float) -> str:
    """Bytes in MB."""
    return f"{size / 1e6:.0f}"


def main() -> None:
    """Prints the tables, or measures in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="folder for the checkpoints, which are kept")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "DTYPE", "LORA"))
    parser.add_argument("--check", metavar="FOLDER")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure_load(*options.measure)))
    elif options.check:
        print(json.dumps(measure_check(options.check)))
    elif options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        print_tables(options.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            print_tables(Path(folder))


if __name__ == "__main__":
    main()
