"""What a stranger with the two files can check, and that nothing changed, forged or mixed up gets through."""

import hashlib
import json
import resource
import subprocess
import sys
import time

import pytest

from fedlearn.canonical import canonical_json
from fedlearn.certificate.figures import booked_event, guarantees_of, request_of
from fedlearn.certificate.form import TYPE
from fedlearn.certificate.verify import verify_certificate
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import ConfigError
from fedlearn.policy.roster import Roster

FLIPS = 200


def failed(verification):
    return {check.name for check in verification.checks if not check.passed}


def flipped(content, number):
    """The content with one bit changed: `FLIPS` different ones, spread over the whole."""
    bit = number * (8 * len(content) - 1) // (FLIPS - 1)
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_certificate_and_its_model_are_consistent_and_nobody_is_named(certificate, model_file):
    verification = verify_certificate(certificate, model_file)
    assert verification.passed, verification.checks
    assert verification.verdict == "consistent; signers not identified"
    assert "that the events happened" in verification.as_dict()["cannot_show"][0]


def test_with_the_roster_the_signer_has_a_name(finished_run, certificate, model_file):
    roster = Roster.from_bytes((finished_run / "roster.toml").read_bytes())
    verdict = verify_certificate(certificate, model_file, roster).verdict
    assert verdict == f"signed by coordinator ({roster.coordinator.fingerprint})"


def test_another_roster_names_nobody(finished_run, certificate, model_file):
    content = (finished_run / "roster.toml").read_bytes().replace(b"client-9", b"client-x")
    verification = verify_certificate(certificate, model_file, Roster.from_bytes(content))
    assert failed(verification) == {"roster"}
    assert verification.as_dict()["signers"] is None


def test_any_bit_of_the_certificate_changed_is_refused(certificate, model_file):
    for number in range(FLIPS):
        assert not verify_certificate(flipped(certificate, number), model_file).passed, number


def test_any_bit_of_the_model_changed_is_refused(certificate, model_file):
    for number in range(FLIPS):
        assert failed(verify_certificate(certificate, flipped(model_file, number))) == {"model"}, number


@pytest.mark.parametrize("changed", [lambda body: body + b"\n", lambda body: body.replace(b",", b", ", 1), bytes.upper])
def test_the_same_content_in_another_form_is_refused(certificate, model_file, changed):
    with_type = changed(certificate).replace(TYPE.upper().encode(), TYPE.encode())
    assert failed(verify_certificate(with_type, model_file)) == {"form"}


def test_upper_case_digits_of_the_signature_are_another_form(certificate, model_file):
    signature = json.loads(certificate)["coordinator"]["signature"].encode()
    body = certificate.replace(signature, signature.upper())
    assert body != certificate
    assert failed(verify_certificate(body, model_file)) == {"form"}


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\xfe", b"[1, 2]", b"[" * 10_000, b'{"type": "summary"}'])
def test_what_is_no_certificate_is_told_in_a_sentence(body, model_file):
    with pytest.raises(ConfigError, match="expected a certificate"):
        verify_certificate(body, model_file)


def lower_epsilon(content):
    content["guarantees"][0]["epsilon"] = "1.000000"


def lower_the_profile(content):
    content["guarantees"][0]["profile"][2]["epsilon"] = "1.000000"


def lower_the_estimate(content):
    content["guarantees"][0]["epsilon_estimate"] = "1.000000"


def lower_mu(content):
    content["guarantees"][0]["mu"] = "0.400000"


def hide_what_is_left_without_masks(content):
    content["guarantees"][0]["epsilon_if_masking_fails"] = None


def hold_against_everybody(content):
    content["guarantees"][0]["holds_against"] = ["everybody"]


def drop_an_assumption(content):
    del content["guarantees"][0]["assumptions"][0]


def claim_for_clients(content):
    content["guarantees"][0]["privacy_unit"] = "client"


def count_fewer_releases(content):
    content["guarantees"][0]["releases"] = 2


@pytest.mark.parametrize(
    "lie",
    [
        lower_epsilon,
        lower_the_profile,
        lower_the_estimate,
        lower_mu,
        hide_what_is_left_without_masks,
        hold_against_everybody,
        drop_an_assumption,
        claim_for_clients,
        count_fewer_releases,
    ],
)
def test_a_guarantee_that_the_events_do_not_give_is_refused_though_it_is_signed(sign_anew, model_file, lie):
    assert failed(verify_certificate(sign_anew(lie), model_file)) == {"guarantees"}


def more_noise_in_an_event(content):
    content["events"][1]["event"]["noise_multiplier"] = "9.000000"


def more_noise_than_was_drawn(content):
    content["noise"]["std"] *= 10


def one_draw_for_the_shares_of_masked_clients(content):
    content["noise"]["drawn"] = "aggregate"


def a_smaller_sensitivity(content):
    content["noise"]["sensitivity"] //= 2


def a_round_left_out(content):
    del content["events"][1]


def a_sum_of_too_few(content):
    content["events"][1]["survived"] = 2


def the_same_round_twice(content):
    content["events"].insert(1, content["events"][1])


@pytest.mark.parametrize(
    "lie",
    [
        more_noise_in_an_event,
        more_noise_than_was_drawn,
        one_draw_for_the_shares_of_masked_clients,
        a_smaller_sensitivity,
        a_round_left_out,
        a_sum_of_too_few,
        the_same_round_twice,
    ],
)
def test_events_that_do_not_follow_from_the_configuration_are_refused(sign_anew, model_file, lie):
    assert "events" in failed(verify_certificate(sign_anew(lie), model_file))


def a_looser_configuration(content):
    content["config"] = content["config"].replace('"max_colluders":1', '"max_colluders":0')


def a_transcript_twice(content):
    content["secure_aggregation"]["transcripts"][1] = content["secure_aggregation"]["transcripts"][0]


def a_higher_threshold(content):
    content["secure_aggregation"]["threshold"] = 8


def fewer_releases_than_were_signed(content):
    content["ledger"]["attestations"][0]["releases"] = 1


def more_noise_everywhere(content):
    """Events and figures follow; only the configuration knows better."""
    request = request_of(content["config"].encode(), population_size=10, dimension=650)
    content["noise"]["std"] *= 2
    event = booked_event(request, content["noise"]["std"])
    for line in content["events"]:
        line["event"] = event
    content["guarantees"] = guarantees_of(request, noise_std=content["noise"]["std"], releases=3, masked=True)


def nothing_unprotected(content):
    content["unprotected"] = []


def a_made_up_audit(content):
    content["audit"] = [{"name": "all audits", "passed": True}]


def an_accuracy_above_one(content):
    content["scores"]["accuracy"] = "1.500000"


def a_purpose_that_clears_the_screen(content):
    content["run"]["purpose"] = "\x1b[2J\x1b[31mPASSED\n signed by everybody"


def an_audit_that_rings(content):
    content["audit"] = [{"format": "fedlearn/v1/audit", "kind": "mechanism", "note": "\a"}]


def another_head(content):
    content["ledger"]["head"] = "00" * 32


def a_claim_to_be_deployed(content):
    content["kind"] = "deployment"


def no_attestation(content):
    content["ledger"]["attestations"] = []


@pytest.mark.parametrize(
    ("lie", "noticed"),
    [
        (a_looser_configuration, "config"),
        (a_transcript_twice, "secure aggregation"),
        (a_higher_threshold, "secure aggregation"),
        (fewer_releases_than_were_signed, "ledger"),
        (another_head, "ledger"),
        (more_noise_everywhere, "events"),
        (nothing_unprotected, "ledger"),
        (a_made_up_audit, "scores"),
        (an_accuracy_above_one, "scores"),
        (a_purpose_that_clears_the_screen, "form"),
        (an_audit_that_rings, "form"),
        (a_claim_to_be_deployed, "ledger"),
        (no_attestation, "ledger"),
    ],
)
def test_every_part_is_held_against_the_others(sign_anew, model_file, lie, noticed):
    assert noticed in failed(verify_certificate(sign_anew(lie), model_file))


def no_clients(content):
    content["population_size"] = 0


def a_configuration_of_nothing(content):
    content["config"] = "{}"


def a_model_of_no_size(content):
    content["subject"]["tensors"] = []


def a_shape_beyond_all_memory(content):
    content["subject"]["tensors"][0]["shape"] = [2**62, 2**62]


@pytest.mark.parametrize("lie", [no_clients, a_configuration_of_nothing, a_model_of_no_size, a_shape_beyond_all_memory])
def test_absurd_values_are_refused_and_not_a_traceback(sign_anew, model_file, lie):
    assert not verify_certificate(sign_anew(lie), model_file).passed


def config_with(**changes):
    def lie(content):
        values = json.loads(content["config"])
        for key, value in changes.items():
            section, name = key.split("__")
            values[section][name] = value
        content["config"] = canonical_json(values).decode()

    return lie


def content_with(section, **changes):
    return lambda content: (content if section is None else content[section]).update(changes)


HOSTILE = {
    "many rounds": config_with(run__rounds=2 * 10**8),
    "more rounds than counts": config_with(run__rounds=10**12),
    "a probability of many digits": config_with(privacy__sampling_probability="1e100000000"),
    "a probability near nothing": config_with(privacy__sampling_probability="1e-30000000"),
    "a fine grid": config_with(secure_aggregation__scale_bits=10**9),
    "text for a number": config_with(privacy__planned_records="many"),
    "rounds in words": config_with(run__rounds="many"),
    "many steps": config_with(training__local_steps=10**300, privacy__mode="record-local"),
    "a small delta": config_with(privacy__delta="1e-400"),
    "no delta": config_with(privacy__delta="nan"),
    "a large norm": config_with(privacy__max_grad_norm="1e308"),
    "an infinite norm": config_with(privacy__max_grad_norm="inf"),
    "a large clip": config_with(privacy__clipping_norm="1e308"),
    "a third": config_with(privacy__sampling_probability="1/3"),
    "a target far off": config_with(privacy__target_epsilon="1e-300"),
    "sections that are lists": content_with(
        None, config='{"privacy":[],"run":[],"secure_aggregation":[],"training":[]}'
    ),
    "a deep configuration": content_with(None, config="[" * 100_000 + "]" * 100_000),
    "no noise": content_with("noise", std=0),
    "loud noise": content_with("noise", std=2**62),
    "a tensor beyond all memory": content_with("subject", tensors=[{"name": "1.bias", "shape": [10**18]}]),
    "nobody": content_with(None, population_size=0),
    "everybody": content_with(None, population_size=2**62),
}


@pytest.mark.parametrize("lie", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_certificate_is_refused_in_sentences_within_two_seconds(sign_anew, model_file, lie):
    def whole(content):
        lie(content)
        content["config_hash"] = hashlib.sha256(content["config"].encode()).hexdigest()

    body = sign_anew(whole)
    began = time.process_time()
    verification = verify_certificate(body, model_file)
    assert time.process_time() - began < 2
    assert not verification.passed
    assert all(check.detail and "\n" not in check.detail for check in verification.checks)


@pytest.mark.parametrize("value", [b"9" * 4000, b"[" * 900 + b"]" * 900, b"NaN", b"1e999"])
def test_hostile_json_in_a_certificate_is_refused_in_a_sentence(certificate, model_file, value):
    body = certificate.replace(b'"audit":[]', b'"audit":[' + value + b"]")
    assert failed(verify_certificate(body, model_file)) == {"form"}


def test_a_signature_of_somebody_else_is_not_the_coordinators(certificate, model_file):
    content = json.loads(certificate)
    stranger = SigningKey(bytes(32)).public.hex()
    body = certificate.replace(content["coordinator"]["key"].encode(), stranger.encode())
    assert {"signature", "ledger"} <= failed(verify_certificate(body, model_file))


def verify(*arguments, flags=()):
    command = [sys.executable, *flags, "-m", "fedlearn.cli", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.lengthy
def test_the_command_answers_within_its_time_and_without_a_gpu_stack(finished_run):
    files = (finished_run / "certificate.json", finished_run / "model.safetensors")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = verify(*files, flags=("-X", "importtime"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1] == "consistent; signers not identified"
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.stderr.splitlines()}
    assert "dp_accounting" in imported
    assert not imported & {"torch", "flwr", "opacus", "pydantic"}
    # Seconds of the processor: those of a clock are the other processes' too.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 1.5


@pytest.mark.lengthy
def test_the_command_ends_with_1_for_a_changed_byte_and_with_2_for_another_file(finished_run, tmp_path):
    files = (finished_run / "certificate.json", finished_run / "model.safetensors")
    told = verify(*files, "--json", "--roster", finished_run / "roster.toml")
    assert (told.returncode, json.loads(told.stdout)["signers"][0][:11]) == (0, "coordinator")
    changed = tmp_path / "changed"
    for position, file in enumerate(files):
        changed.write_bytes(file.read_bytes()[:-1] + b"!")
        told = verify(*(changed if place == position else other for place, other in enumerate(files)), "--json")
        assert (told.returncode, json.loads(told.stdout)["passed"]) == (1, False)
    for missing in (finished_run / "summary.json", tmp_path / "nowhere"):
        told = verify(missing, files[1])
        assert told.returncode == 2
        assert told.stderr.count("\n") == 1
