"""Saved probes: what they score, what they refuse to be, and the options of calls that use them."""

import math
from typing import Any

import numpy as np
import pytest

from midsight.errors import MidsightError
from midsight.extraction.request import make_request
from midsight.store.probe import Probe, ProbeOrigin
from support.made_up import make_spec
from support.probes import write_probes


@pytest.fixture(scope="module")
def probe():
    rng = np.random.default_rng(0)
    return Probe(
        column="query_token_representation.layer_0",
        label="correct",
        shift=rng.standard_normal(12),
        weight=rng.standard_normal(12),
        slope=0.5,
        intercept=-0.25,
        facts={},
        origin=ProbeOrigin.of(make_spec()),
    )


def test_a_row_of_a_probe_does_not_depend_on_the_others(probe):
    vectors = np.random.default_rng(1).standard_normal((9, 12)).astype(np.float32)
    alone = np.concatenate([probe.score(vectors[i : i + 1]) for i in range(len(vectors))])
    assert np.array_equal(probe.score(vectors), alone)
    assert np.array_equal(probe.score(np.asfortranarray(vectors)), alone)
    assert np.array_equal(probe.score(np.tile(vectors, (1000, 1)))[:9], alone)


def test_a_probe_folder_that_was_damaged_is_refused(probe, tmp_path):
    folder = write_probes(tmp_path / "probe", [probe])
    assert Probe.load(folder).digest == probe.digest
    for name in ("probe.json", "weights.safetensors"):
        file = folder / name
        good = file.read_bytes()
        at = len(good) - 9
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(MidsightError, match="does not hold a probe"):
            Probe.load(folder)
        file.write_bytes(good)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"abstain_above": math.nan}, "abstain_above is nan, and a risk is a probability; give a number from 0 to 1"),
        ({"abstain_above": -0.1}, "abstain_above is -0.1"),
        ({"abstain_above": 1.1}, "abstain_above is 1.1"),
        ({"abstain_above": True}, "abstain_above is True"),
        ({"abstain_above": "0.5"}, "abstain_above is '0.5'"),
        ({"abstain_above": 0.5, "answers": False}, "abstain_above leaves answers out, and with answers=False there"),
        ({"abstain_above": 0.5, "probe": None}, "abstain_above needs a probe"),
        ({"risk_of": "true", "probe": None}, "risk_of needs a probe"),
        ({"risk_of": "wrong"}, "risk_of is 'wrong'; give false or true"),
        ({"probe": 7}, "probe is a int; give a probe, or its folder"),
        ({"probe": "nowhere"}, "nowhere does not hold a probe"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_the_model(probe, options, problem):
    given: dict[str, Any] = {"probe": probe, **options}
    with pytest.raises(MidsightError, match=problem):
        _ = make_request(given).risk
