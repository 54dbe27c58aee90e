"""`midsight models`: the comparison, computed from configs alone."""

import json
import os
import re
import time
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import midsight
from midsight.check.facts import read_facts
from midsight.cli import app
from midsight.comparison import bounded_row, sizes
from midsight.comparison.bounded_row import describe_bounded
from midsight.comparison.compare import compare
from midsight.comparison.rows import describe_model
from midsight.comparison.table import cells, models_as_json, models_as_markdown, render_models, render_overview
from midsight.families.catalogue import FAMILIES, WITH_ENCODER
from midsight.testing import write_mllama, write_published_phi4mm, write_qwen2_5_vl
from support.folders import assert_sentence, edit_json, said_by

FACTS = Path(os.environ.get("MIDSIGHT_FACTS", Path(__file__).parents[3] / "shared" / "facts"))
PHI, LLAMA = "microsoft/Phi-4-multimodal-instruct", "meta-llama/Llama-3.2-11B-Vision-Instruct"
QWEN2_5, QWEN2 = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"
LLAVA, LLAVA_NEXT = "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-v1.6-mistral-7b-hf"
ONEVISION, FASTVLM = "llava-hf/llava-onevision-qwen2-7b-ov-hf", "KamilaMila/FastVLM-7B"
QWEN3_5, QWEN3_5_MOE = "Qwen/Qwen3.5-27B", "Qwen/Qwen3.5-35B-A3B"
GEMMA4, GEMMA3N = "google/gemma-4-E4B-it", "google/gemma-3n-E4B-it"
GEMMA, INTERNVL = "google/gemma-3-4b-it", "OpenGVLab/InternVL3-1B-hf"
QWEN3, GLM = "Qwen/Qwen3-VL-8B-Instruct", "zai-org/GLM-4.1V-9B-Thinking"
GLM_MOE = "zai-org/GLM-4.5V"
QWEN3_MOE = "Qwen/Qwen3-VL-30B-A3B-Instruct"
IDEFICS3, SMOLVLM2 = "HuggingFaceM4/Idefics3-8B-Llama3", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
MOLMO2, OVIS2 = "allenai/Molmo2-4B", "thisisiron/Ovis2-1B-hf"
DEEPSEEK = "deepseek-community/deepseek-vl-1.3b-chat"
DEEPSEEK_HYBRID = "deepseek-community/deepseek-vl-7b-chat"
MISTRAL3 = "mistralai/Mistral-Small-3.1-24B-Instruct-2503"
PIXTRAL = "mistral-community/pixtral-12b"
LLAMA4 = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
PALIGEMMA2 = "google/paligemma2-3b-mix-224"
AYA = "CohereLabs/aya-vision-8b"

PUBLISHED = {
    PHI: ("Phi-4-multimodal", 1152, 448, 32, (0, 8, 16, 24, 31), 3072, "<|endoftext10|>", 200010),
    LLAMA: ("Llama 3.2 Vision", 7680, 560, 40, (0, 10, 20, 30, 39), 4096, "<|image|>", 128256),
    QWEN2_5: ("Qwen2.5-VL", 1280, None, 28, (0, 7, 14, 21, 27), 3584, "<|image_pad|>", 151655),
    QWEN2: ("Qwen2-VL", 1280, None, 28, (0, 7, 14, 21, 27), 3584, "<|image_pad|>", 151655),
    QWEN3: ("Qwen3-VL", 1152, None, 36, (0, 9, 18, 27, 35), 4096, "<|image_pad|>", 151655),
    GLM: ("GLM-4.1V", 1536, None, 40, (0, 10, 20, 30, 39), 4096, "<|image|>", 151343),
    GLM_MOE: ("GLM-4.5V", 1536, None, 46, (0, 11, 23, 34, 45), 4096, "<|image|>", 151363),
    QWEN3_MOE: ("Qwen3-VL-MoE", 1152, None, 48, (0, 12, 24, 36, 47), 2048, "<|image_pad|>", 151655),
    QWEN3_5: ("Qwen3.5", 1152, None, 64, (0, 16, 32, 48, 63), 5120, "<|image_pad|>", 248056),
    QWEN3_5_MOE: ("Qwen3.5-MoE", 1152, None, 40, (0, 10, 20, 30, 39), 2048, "<|image_pad|>", 248056),
    LLAVA: ("LLaVA 1.5", 1024, 336, 32, (0, 8, 16, 24, 31), 4096, "<image>", 32000),
    LLAVA_NEXT: ("LLaVA-NeXT", 1024, 336, 32, (0, 8, 16, 24, 31), 4096, "<image>", 32000),
    ONEVISION: ("LLaVA-OneVision", 1152, 384, 28, (0, 7, 14, 21, 27), 3584, "<image>", 151646),
    FASTVLM: ("FastVLM", 3072, 1024, 28, (0, 7, 14, 21, 27), 3584, "<image>", 151646),
    GEMMA: ("Gemma 3", 1152, 896, 34, (0, 8, 17, 25, 33), 2560, "<image_soft_token>", 262144),
    GEMMA3N: ("Gemma 3n", 2048, 768, 35, (0, 8, 17, 26, 34), 2048, "<image_soft_token>", 262145),
    GEMMA4: ("Gemma 4", 768, None, 42, (0, 10, 21, 31, 41), 2560, "<|image|>", 258880),
    IDEFICS3: ("Idefics3", 1152, 364, 32, (0, 8, 16, 24, 31), 4096, "<image>", 128257),
    SMOLVLM2: ("SmolVLM2", 1152, 384, 24, (0, 6, 12, 18, 23), 2048, "<image>", 49190),
    INTERNVL: ("InternVL 3", 1024, 448, 24, (0, 6, 12, 18, 23), 896, "<IMG_CONTEXT>", 151667),
    OVIS2: ("Ovis2", 1024, 448, 24, (0, 6, 12, 18, 23), 896, "<IMG_ATOM>", 151665),
    DEEPSEEK: ("DeepSeek-VL", 1024, 384, 24, (0, 6, 12, 18, 23), 2048, "<image_placeholder>", 100015),
    DEEPSEEK_HYBRID: ("DeepSeek-VL hybrid", 2048, 384, 30, (0, 7, 15, 22, 29), 4096, "<image_placeholder>", 100015),
    AYA: ("Aya Vision", 1152, 364, 32, (0, 8, 16, 24, 31), 4096, "<|IMG_PATCH|>", 255036),
    MISTRAL3: ("Mistral 3", 1024, None, 40, (0, 10, 20, 30, 39), 5120, "[IMG]", 10),
    PIXTRAL: ("Pixtral", 1024, None, 40, (0, 10, 20, 30, 39), 5120, "[IMG]", 10),
    LLAMA4: ("Llama 4", 1408, 336, 48, (0, 12, 24, 36, 47), 5120, "<|patch|>", 200092),
    PALIGEMMA2: ("PaliGemma 2", 1152, 224, 26, (0, 6, 13, 19, 25), 2304, "<image>", 257152),
    MOLMO2: ("Molmo 2", 2304, None, 36, (0, 9, 18, 27, 35), 2560, "<im_patch>", 151938),
}
"""Family, vision width, processor columns, layers, default layers, hidden width, image token and id."""


@pytest.fixture(scope="module")
def rows():
    return compare([])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def fetch(*args, **kwargs):
        pytest.fail(f"{args} was fetched")

    monkeypatch.setattr(sizes, "fetch", fetch)


def run(*arguments):
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


def test_by_default_every_family_is_there_with_its_published_numbers(rows):
    assert {row.architecture for row in rows} == set(FAMILIES)
    assert len(rows) == len(FAMILIES) + len(WITH_ENCODER)
    found = {
        row.name: (
            row.family,
            row.vision_width,
            row.processor_columns,
            row.layers,
            row.default_layers,
            row.hidden_size,
            row.image_token,
            row.image_token_id,
        )
        for row in rows
    }
    assert found == PUBLISHED


def test_parameters_are_those_of_the_published_models(rows):
    billions = {row.name: round(row.total_parameters / 1e9, 2) for row in rows}
    assert billions == {
        PHI: 4.74,
        LLAMA: 10.67,
        QWEN2_5: 8.29,
        QWEN2: 8.29,
        LLAVA: 7.06,
        LLAVA_NEXT: 7.57,
        ONEVISION: 8.03,
        FASTVLM: 7.76,
        GEMMA: 4.3,
        IDEFICS3: 8.46,
        SMOLVLM2: 2.25,
        QWEN3: 8.77,
        GLM: 10.29,
        GLM_MOE: 107.71,
        QWEN3_MOE: 31.07,
        QWEN3_5: 27.36,
        QWEN3_5_MOE: 35.11,
        GEMMA3N: 7.82,
        GEMMA4: 7.94,
        INTERNVL: 0.94,
        OVIS2: 1.13,
        DEEPSEEK: 1.96,
        DEEPSEEK_HYBRID: 7.33,
        AYA: 8.63,
        PALIGEMMA2: 3.03,
        MISTRAL3: 24.01,
        PIXTRAL: 12.68,
        LLAMA4: 108.64,
        MOLMO2: 4.85,
    }
    assert {row.name: row for row in rows}[MOLMO2].total_parameters == 4_850_869_200, "as the index of Molmo2-4B says"
    for row in rows:
        assert {"vision encoder", "decoder", "token embedding"} <= set(row.parameters)


def test_image_tokens_are_those_of_an_image_of_640_x_480(rows):
    """Computed by the family from the published settings of its image processor."""
    assert {row.name: row.image_tokens for row in rows} == {
        PHI: 256 + 1 + 24 * 33 + 16,
        LLAMA: 1,
        QWEN2_5: 23 * 17,
        QWEN2: 23 * 17,
        QWEN3: 20 * 15,
        GLM: 23 * 17,
        GLM_MOE: 23 * 17,
        QWEN3_MOE: 20 * 15,
        QWEN3_5: 20 * 15,
        QWEN3_5_MOE: 20 * 15,
        GEMMA3N: 256,
        GEMMA4: 19 * 14,
        LLAVA: 24 * 24,
        LLAVA_NEXT: 2340,
        ONEVISION: 27 * 27 + 40 * (54 + 1),
        FASTVLM: 256,
        GEMMA: 256,
        IDEFICS3: 13 * 169,
        SMOLVLM2: 13 * 81,
        INTERNVL: 13 * 256,
        OVIS2: 5 * 256,
        DEEPSEEK: 24 * 24,
        DEEPSEEK_HYBRID: 24 * 24,
        AYA: 13 * 169,
        PALIGEMMA2: 256,
        MISTRAL3: 23 * 18,
        PIXTRAL: 40 * 30,
        LLAMA4: 5 * 144,
        MOLMO2: 14 * 14 + 23 * 23,
    }


@pytest.mark.skipif(
    not (FACTS / "phi4mm").is_dir(), reason="the published Phi-4 files are not here; set MIDSIGHT_FACTS"
)
def test_phi4_counts_what_its_published_tensors_hold(rows):
    shapes = json.loads((FACTS / "phi4mm" / "tensor_shapes.json").read_text())
    loras = sum(prod(shape) for name, shape in shapes.items() if ".lora_" in name)
    statistics = 160  # mean and deviation of the audio tower's 80 inputs, which are not parameters
    row = rows[0]
    assert row.total_parameters == sum(map(prod, shapes.values())) - loras - statistics
    assert f"{loras:,} in two LoRAs" in row.also_published


@pytest.mark.skipif(
    not (FACTS / "mllama").is_dir(), reason="the published Llama files are not here; set MIDSIGHT_FACTS"
)
def test_llama_equals_its_published_config_and_tensors(rows, tmp_path):
    config = json.loads((FACTS / "mllama" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["MllamaForConditionalGeneration"]}))
    row = describe_model(str(tmp_path))
    shapes = json.loads((FACTS / "mllama" / "native_state_dict_shapes.json").read_text())
    assert row.total_parameters == sum(map(prod, shapes.values())) == rows[1].total_parameters
    assert row.parameters == rows[1].parameters
    assert (row.vision_width, row.layers, row.hidden_size) == (7680, 40, 4096)


@pytest.mark.parametrize("write", [write_mllama, write_qwen2_5_vl, write_published_phi4mm])
def test_a_folder_is_described_as_it_loads(write, tmp_path):
    folder = write(tmp_path / "model")
    row, loaded = describe_model(str(folder)), midsight.load(folder, device="cpu", audio=True).loaded
    assert (row.layers, row.hidden_size) == (loaded.n_layers, loaded.hidden_size)
    assert row.image_token_id == loaded.tokenizer.convert_tokens_to_ids(row.image_token)
    if row.processor_columns is not None:
        assert loaded.family.vision.crop_px is not None
        assert row.processor_columns == loaded.family.vision.crop_px(loaded.config)
        assert row.processor_columns == loaded.processor.image_processor.size["height"]
    stored = {part: count for part, count in read_facts(folder).parameters.items() if "LoRA" not in part}
    counted = dict(row.parameters)
    if "audio" in stored:
        counted["audio"] += 160  # stored statistics that are not parameters
    assert counted == stored


def test_a_folder_without_a_chat_template_is_not_given_the_published_prompt(tmp_path):
    folder = write_qwen2_5_vl(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    assert describe_model(str(folder)).template == ""


def test_a_config_alone_is_enough(tmp_path):
    folder = write_qwen2_5_vl(tmp_path / "model")
    whole = describe_model(str(folder))
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    assert whole.image_tokens
    assert describe_model(str(folder)) == replace(whole, image_tokens=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "hostile"),
    [
        ("config.json", {"vision_config": {"depth": 10**8}}),
        ("processor_config.json", {"image_processor": {"size": {"shortest_edge": 10**9, "longest_edge": 2 * 10**9}}}),
    ],
)
def test_a_folder_that_asks_for_too_much_is_refused(tmp_path, monkeypatch, file, hostile):
    monkeypatch.setattr(bounded_row, "MOST_SECONDS", 3)
    monkeypatch.setattr(bounded_row, "MOST_MEMORY", 2**28)
    folder = write_qwen2_5_vl(tmp_path / "model")
    assert describe_bounded(str(folder)) == describe_model(str(folder))
    edit_json(folder / file, lambda content: merge(content, hostile))
    said = said_by(describe_bounded, str(folder))
    assert said is not None
    assert_sentence(said)
    assert said.startswith(f"{folder} cannot be described, because its config or image processor asks for too much")


def test_a_fork_that_waits_for_ever_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_row, "LONGEST_WAIT_S", 0.5)
    monkeypatch.setattr(bounded_row, "describe_model", lambda _: time.sleep(60))
    began = time.monotonic()
    assert "asks for too much time or memory" in (said_by(describe_bounded, str(tmp_path)) or "")
    assert time.monotonic() - began < 30


def merge(content, changes):
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(content.get(name), dict):
            merge(content[name], value)
        else:
            content[name] = value


def test_what_is_wrong_with_a_folder_is_said_from_the_fork(tmp_path):
    said = said_by(describe_bounded, str(tmp_path))
    assert said is not None
    assert said == said_by(describe_model, str(tmp_path))


def test_python_of_a_folder_is_not_run_whatever_is_answered(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "y")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    config = {"model_type": "own", "architectures": ["LlavaForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "own.Config"}}))
    assert "config.json is not usable" in str(said_by(describe_model, str(tmp_path)))
    assert not (tmp_path / "mark").exists()


def test_phi4_is_given_both_numbers_and_why():
    said = run(PHI, LLAMA).output
    assert re.search(r"vision width +│ 1152 +│ 7680", said)
    assert re.search(r"processor columns +│ 448 +│ 560", said)
    together = " ".join(said.split())
    assert "Phi-4-multimodal: 1152 is the width of the vision encoder's features" in together
    assert "448 is the side of the processor's crops in pixels" in together


def test_the_table_of_the_documentation_says_the_same(rows):
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("\\|", "|") for cell in line] for line in lines]
    names, described = cells[0], cells[2 : 2 + len(rows)]
    table = [dict(zip(names, line, strict=True)) for line in described]
    assert [line["family"] for line in table] == [row.family for row in rows]
    assert [line["published model"] for line in table] == [row.name for row in rows]
    assert [line["architecture"] for line in table] == [f"`{row.architecture}`" for row in rows]
    assert [line["vision width"] for line in table] == [str(row.vision_width) for row in rows]
    assert [line["layers, width"] for line in table] == [f"{row.layers}, {row.hidden_size}" for row in rows]
    assert [line["image token, id"] for line in table] == [f"`{row.image_token}` {row.image_token_id}" for row in rows]


def test_markdown_is_one_table_with_a_column_for_each_model(rows):
    lines = models_as_markdown(rows).splitlines()
    table = [line for line in lines if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line) for line in table]
    assert {len(row) for row in cells} == {2 + 1 + len(rows)}
    assert [cell.strip() for cell in cells[0][2:-1]] == [row.name for row in rows]
    by_name = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in cells[2:]}
    assert by_name["image token"][1] == r"`<\|image\|>`"
    assert by_name["hidden width"] == [str(row.hidden_size) for row in rows]
    assert "\n" not in by_name["template"][1]


def test_json_holds_the_same(rows):
    data = json.loads(run("--json").output)
    assert data == json.loads(json.dumps(models_as_json(rows)))
    assert [model["total_parameters"] for model in data["models"]] == [row.total_parameters for row in rows]


def test_two_formats_at_once_are_a_wrong_call():
    result = run("--json", "--markdown")
    assert result.exit_code == 2
    assert "give one" in result.output


@pytest.mark.parametrize("call", [describe_model, midsight.load])
def test_an_unknown_family_is_named_with_those_that_are_known(call, tmp_path):
    config = {"model_type": "vipllava", "architectures": ["VipLlavaForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = said_by(call, str(tmp_path))
    assert said is not None
    assert_sentence(said)
    assert "VipLlavaForConditionalGeneration" in said
    assert "the page 'Adding a model'" in said
    assert f"midsight knows {len(FAMILIES) + len(WITH_ENCODER)} families, which `midsight models` lists" in said
    assert "(the nearest name is Llava)" in said


def test_what_is_neither_folder_nor_hub_id_is_refused():
    said = said_by(describe_model, "phi4")
    assert said == "phi4 is neither a folder nor a hub id like owner/name; give one of them."


def shares(row):
    """PaliGemma's image reads the question, and Qwen3.5 keeps a state."""
    return "no" if row.name in (PALIGEMMA2, QWEN3_5, QWEN3_5_MOE) else "yes"


@pytest.mark.parametrize("width", [80, 140])
def test_the_overview_has_a_line_for_each_family(rows, width):
    """One line of a terminal, also of the narrowest that is usual."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(render_overview(rows))
    said = captured.get()
    assert max(map(len, said.splitlines())) <= width
    assert "\u2026" not in said
    assert "_model" not in said, "an encoder is called by its name"
    values = [
        (row.family, encoder(row), row.vision_width, row.hidden_size, row.layers, row.image_tokens, shares(row))
        for row in rows
    ]
    assert cells_of_lines(said) == [["".join(str(value).split()) for value in line] for line in values]
    assert "Image tokens are those of an image of 640 x 480." in " ".join(said.split())
    for row in rows:
        assert row.name in said


def encoder(row):
    """Its name; what it takes is in the table of models that are named."""
    return row.vision_encoder.split(",")[0]


def test_without_names_the_command_prints_the_overview():
    said = run().output
    assert "Name models, these or others, to see every column" in " ".join(said.split())
    assert "pixel columns" not in said


def cells_of_lines(said):
    """The cells of each line of a table in a terminal, without spaces."""
    body = said.partition("╇")[2].partition("\n")[2].partition("└")[0]
    return [["".join(cell.split()) for cell in line.split("│")[1:-1]] for line in body.splitlines()]


def test_a_family_that_shares_no_prefix_says_so(rows):
    assert cells(replace(rows[0], shares_prefix=False))["shares prefix"] == "no"


def test_the_other_tables_of_the_documentation_have_every_family(rows):
    """The second says what follows for a run, the third how far a family is proved."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    tables = [
        {name: line for line in table for name in line[0].split(", ")}
        for table in map(rows_of_table, re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)[1:3])
    ]
    for row in rows:
        follows, proved = (table[row.family] for table in tables)
        columns = f"[{row.processor_columns}]" if row.processor_columns else "refused: no crops"
        assert follows[-1] == columns
        assert proved[1] == "passed"


def rows_of_table(table):
    lines = table.splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize(("width", "shown_models"), [(80, None), (140, 4), (140, None)])
def test_every_cell_can_be_read_in_a_terminal(rows, width, shown_models):
    """In 80 columns models stand below each other, because four beside each other leave 12 characters for each."""
    rows = rows[:shown_models]
    console = Console(width=width)
    with console.capture() as captured:
        console.print(render_models(rows, width))
    shown = captured.get()
    assert "\u2026" not in shown
    assert max(map(len, shown.splitlines())) <= width
    if shown_models is None:
        letters = re.sub(r"\s", "", shown)
        for row in rows:
            for name, value in cells(row).items():
                assert re.sub(r"\s", "", name + value) in letters
            assert f"{row.name}\n" in re.sub(r" +\n", "\n", shown)
    else:
        assert all(row.family in shown.split("vision encoder", 1)[0] for row in rows)
