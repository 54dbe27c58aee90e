"""What one sample may take: more is a failure with figures, before memory runs out."""

import re
from dataclasses import replace

import pytest
from PIL import Image

import midsight
from midsight.extraction import prepare as preparing

OPTIONS = {"layers": [0], "max_new_tokens": 1, "batch_size": 4}


def seen(monkeypatch):
    """Counts the images that are decoded."""
    decoded, original = [], preparing.decode_image
    monkeypatch.setattr(preparing, "decode_image", lambda source, **_: (decoded.append(1), original(source))[1])
    return decoded


@pytest.mark.parametrize(("bound", "sentence"), [("tokens", "tokens, and the model takes"), ("bytes", "take .* MB")])
def test_a_sample_with_a_thousand_images_fails_after_the_first_few(model, monkeypatch, bound, sentence):
    if bound == "bytes":
        monkeypatch.setattr(preparing, "MOST_BYTES", 4 * 10**7)
    else:
        monkeypatch.setattr(type(model.loaded), "max_prompt_tokens", property(lambda _: 4_000))
    images = tuple(Image.new("RGB", (64, 64), (n % 256, n // 256, 0)) for n in range(1_000))
    many = midsight.Sample("many", 0, images, "What is this?")
    decoded = seen(monkeypatch)
    outcomes = model.extract_many([many, replace(many, sample_id="one", input_index=1, images=images[:1])], **OPTIONS)
    assert isinstance(outcomes[0], midsight.Failure)
    assert "of the sample's 1,000 images" in outcomes[0].reason
    assert re.search(sentence, outcomes[0].reason), outcomes[0].reason
    assert isinstance(outcomes[1], midsight.Record)
    assert len(decoded) < 30
