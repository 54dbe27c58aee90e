"""The end of the demo on a made-up run: layer by layer, the control, and the curve of abstention."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from midsight.demo.findings import show_findings
from midsight.store import open_run
from midsight.store.findings import finding_names
from support.made_up import make_model_spec, make_record, make_request, make_spec, write_run

pytestmark = pytest.mark.slow

IMAGE, QUERY = "vision_token_representation.layer_0", "query_token_representation.layer_{}"


def write_scenes(path, images):
    """Two questions about presence and one about a count on each image; the last query layer knows the truth."""
    rng = np.random.default_rng(0)
    columns = {IMAGE: 6, QUERY.format(0): 6, QUERY.format(1): 6}
    request = make_request(positions=("vision_token", "query_token"), residual=False, vision="none")
    spec = make_spec(vectors=columns, extras={"kind": "string"}, request=request, model=make_model_spec())
    records = []
    for image in range(images):
        picture = rng.standard_normal(6).astype(np.float32)
        for number, wanted in enumerate(("yes", "no", "two")):
            right = bool(rng.random() < 0.8)
            said = wanted if right else {"yes": "no", "no": "yes", "two": "one"}[wanted]
            late = rng.standard_normal(6)
            late[0] += 3 * (wanted == "yes")
            late[1] += 3 * (said == "yes")
            logprob = float(-np.exp(rng.standard_normal() - 2 * right))
            records.append(
                make_record(
                    3 * image + number,
                    spec,
                    image_id=f"image-{image}",
                    extras={"kind": "count" if number == 2 else "presence"},
                    reference_answers=(wanted,),
                    answer=said,
                    answer_token_ids=(("yes", "no", "one", "two").index(said), 9),
                    answer_logprobs=(logprob, -0.1),
                    first_token_top_logprobs=(logprob, logprob - 3),
                    first_token_entropy=-logprob,
                    vectors={
                        IMAGE: picture,
                        QUERY.format(0): rng.standard_normal(6).astype(np.float32),
                        QUERY.format(1): late.astype(np.float32),
                    },
                )
            )
    write_run(path, records, spec)
    return open_run(path)


def shown(run):
    console = Console(file=io.StringIO(), width=140)
    show_findings(run, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    run = write_scenes(tmp_path_factory.mktemp("scenes") / "run", 60)
    return run, shown(run)


def row(text, name):
    """AUROC by column of the table of layers."""
    line = next(line for line in text.splitlines() if name in line)
    return [float(value) for value in re.findall(r"(\d\.\d\d) \(", line)]


def test_presence_and_answer_are_read_from_the_late_layer(printed):
    there, says, _ = row(printed[1], "prompt's last, 1")
    assert there > 0.9
    assert says > 0.9
    assert max(row(printed[1], "prompt's last, 0")[:2]) < 0.7


def test_image_vectors_stay_at_one_half_exactly(printed):
    assert row(printed[1], "image's last, 0")[0] == 0.5


def test_the_error_probe_is_compared_with_confidence_and_the_curve_falls(printed):
    run, text = printed
    assert "the model's own confidence before the answer" in " ".join(text.split())
    shares = [float(value) for value in re.findall(r"│ +\d+% +│ ([\d.]+)% │", text)]
    assert len(shares) == 6
    assert shares[0] > shares[-1]
    assert finding_names(run.path) == ["correct", "says_yes", "there"]


def test_few_pictures_are_not_probed(tmp_path):
    assert "4 pictures are too few for probes" in shown(write_scenes(tmp_path / "run", 4))
