"""`audit inversion`: without privacy a record can be read off; with it, nobody does better who saw a client."""

import struct
import zlib

import numpy as np
import pytest
from dishonest_parties import NoNoise

from fedlearn.audit.inversion import audit_inversion
from fedlearn.audit.pictures import sheet
from fedlearn.errors import ConfigError


@pytest.mark.parametrize("overrides", [(), ("model.name=mlp", "privacy.mode=record-local")])
def test_records_cannot_be_rebuilt_with_privacy_and_can_without(load_plain, overrides):
    told = audit_inversion(load_plain(*overrides))
    assert told.passed
    assert told.cosine_control > 0.999
    assert max(told.cosine_sent, told.cosine_aggregate) < 0.2 < told.cosine_mean_image
    assert told.cosine_if_masking_fails is None


def test_masks_hide_a_vector_that_has_no_noise_but_not_the_sum(load_digits):
    told = audit_inversion(load_digits(), parties=NoNoise)
    assert told.cosine_sent < 0.2
    assert told.cosine_if_masking_fails > 0.999
    assert told.cosine_aggregate > 0.999
    assert not told.passed


def test_the_server_of_a_central_mode_is_trusted_and_that_is_said(load_plain):
    told = audit_inversion(load_plain("privacy.mode=client-central", "secure_aggregation.scale_bits=16"))
    assert told.cosine_sent > 0.999
    assert told.protected == ("aggregate",)
    assert told.passed


def test_a_model_whose_first_layer_tells_nothing_is_refused(load_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folded_models.py").write_text(
        "from torch import nn\n\n\ndef folded(input_shape, classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten(), nn.Linear(2, classes))\n"
    )
    with pytest.raises(ConfigError, match="begins with Conv2d; expected a model whose first layer is linear"):
        audit_inversion(load_digits("model.name=folded_models:folded"))


def test_a_sheet_is_a_png_with_a_tile_for_each_record():
    png = sheet([np.arange(2 * 64.0).reshape(2, 1, 8, 8), np.zeros((2, 1, 8, 8))])
    width, height, depth, color = struct.unpack(">IIBB", png[16:26])
    assert (width, height, depth, color) == (150, 150, 8, 0)
    size = struct.unpack(">I", png[33:37])[0]
    lines = np.frombuffer(zlib.decompress(png[41 : 41 + size]), np.uint8).reshape(height, width + 1)
    assert set(lines[:, 0]) == {0}
    assert (lines[0, 1], lines[71, 72], lines[0, 73], lines[80, 1]) == (0, 255, 255, 0)


def test_records_without_a_second_axis_are_strips():
    assert struct.unpack(">II", sheet([np.zeros((3, 12))])[16:24]) == (3 * 72 + 2 * 6, 36)
