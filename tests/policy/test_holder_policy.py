"""The holder's file: what is missing, unknown or cannot be is one sentence, and nothing is accepted."""

from dataclasses import replace
from pathlib import Path

import pytest
from holder_files import FOUR, client_id, coordinator, entry, key, small_roster, write_policy

from fedlearn.cli import main
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.host.shipped import shipped_root
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.policy.roster import Confirmations, Roster


def test_a_file_says_what_its_data_set_may_be_used_for(tmp_path):
    limits = HolderPolicy.load(write_policy(tmp_path)).for_dataset("digits")
    assert limits.model_dump(mode="json") == {
        "privacy_unit": "record",
        "max_epsilon": 3.0,
        "max_delta": 1e-5,
        "models": ["linear"],
        "model_options": {},
        "schemas": None,
        "modes": ["record-distributed"],
        "min_survivors": 3,
        "max_colluders_at_least": 1,
        "unconfirmed": 3,
        "unconfirmed_members": 3,
        "max_dimension": 650,
        "releases_per_model": 2,
        "unmasked": False,
    }


KEYS = [
    *("client_id", "key_file", "roster_file", "roster_sha256"),
    *("source", "privacy_unit", "max_epsilon", "max_delta", "models", "modes", "schema_sha256", "model_options"),
    *("min_survivors", "max_colluders_at_least", "unconfirmed_members", "max_dimension", "releases_per_model"),
    *("socket", "reply_after_seconds"),
]


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("schema_sha256", "model_options")])
def test_a_key_that_is_missing_is_refused_by_its_name(tmp_path, key):
    path = write_policy(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(f"{key} =")))
    with pytest.raises(ConfigError, match=rf"the key \S*{key} is missing; add it"):
        HolderPolicy.load(path)


def replaced(key, value):
    return lambda text: "".join(
        f"{key} = {value}\n" if line.startswith(f"{key} =") else line for line in text.splitlines(keepends=True)
    )


def added(section, line):
    return lambda text: text.replace(f"[{section}]\n", f"[{section}]\n{line}\n")


BROKEN = {
    "not TOML": (lambda text: text + "[", "expected a TOML file"),
    "empty": (lambda text: "", "the section holder is missing"),
    "a section too many": (lambda text: text + "[server]\n", "server is not a section of a policy"),
    "no data set": (
        lambda text: text[: text.index("[dataset")] + "[dataset]\n" + text[text.index("[limits]") :],
        r"no data set; add a section \[dataset.ID\]",
    ),
    "a data set without a name": (
        lambda text: text.replace("[dataset.digits]", "[dataset]"),
        "dataset.source is .*expected a section of keys and values",
    ),
    "an id with a slash": (
        lambda text: text.replace("[dataset.digits]", '[dataset."a/b"]'),
        "expected an id of letters",
    ),
    "noise alone": (added("limits", "noise_multiplier = 1.0"), r"limits.noise_multiplier is not a key of a policy"),
    "a mistyped limit": (
        added("limits", "max_dimensions = 3"),
        r"limits.max_dimensions is not a key of a policy; did you mean limits.max_dimension\?",
    ),
    "a mistyped key of a data set": (
        added("dataset.digits", "max_epsilom = 3"),
        r"dataset.digits.max_epsilom is not a key of a policy; did you mean dataset.digits.max_epsilon\?",
    ),
    "masking off": (added("limits", "masking = false"), "limits.masking is not a key of a policy"),
    "an id of 15 bytes": (replaced("client_id", '"01"'), 'client_id is "01"; expected 16 bytes as 32 hexadecimal'),
    "a hash in capitals": (replaced("roster_sha256", f'"{"AB" * 32}"'), "roster_sha256 .* expected 32 bytes"),
    "an unknown source": (
        replaced("source", '"digit"'),
        'source is "digit"; expected a .csv, .csv.gz or .parquet file, or one of',
    ),
    "csv without a file": (replaced("source", '"csv"'), 'source is "csv"; expected a .csv, .csv.gz or .parquet file'),
    "an unknown unit": (replaced("privacy_unit", '"person"'), "privacy_unit is \"person\"; expected one of 'record'"),
    "epsilon of zero": (replaced("max_epsilon", "0.0"), "max_epsilon is 0.0; expected a number above 0"),
    "no bound on epsilon": (replaced("max_epsilon", "inf"), "max_epsilon is inf; expected a finite number"),
    "epsilon that is no number": (replaced("max_epsilon", "nan"), "max_epsilon is nan; expected a"),
    "epsilon in quotes": (replaced("max_epsilon", '"3"'), 'max_epsilon is "3"; expected a number'),
    "delta of one": (replaced("max_delta", "1.0"), "max_delta is 1.0; expected a number below 1"),
    "no model": (replaced("models", "[]"), "expected the name of at least one model"),
    "one model, not a list": (replaced("models", '"linear"'), 'models is "linear"; expected a list'),
    "an unknown model": (
        replaced("models", '["linaer"]'),
        r'"linaer" is not a model: expected .*; did you mean linear\?',
    ),
    "an unknown mode": (replaced("modes", '["record"]'), '"record" is not a mode: expected client-central'),
    "a mode of the other unit": (
        replaced("modes", '["client-central"]'),
        "modes names client-central, which protects one client; privacy_unit is record",
    ),
    "no survivors": (replaced("min_survivors", "0"), "min_survivors is 0; expected a number of at least 1"),
    "half a colluder": (
        replaced("max_colluders_at_least", "0.5"),
        "max_colluders_at_least is 0.5; expected an integer",
    ),
    "true as a number": (replaced("unconfirmed_members", "true"), "unconfirmed_members is true; expected an integer"),
    "no attempt at all": (
        replaced("releases_per_model", "0"),
        "releases_per_model is 0; expected a number of at least 1",
    ),
    "a reply before the request": (replaced("reply_after_seconds", "-1"), "reply_after_seconds is -1; expected"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_broken_file_is_one_sentence_and_exit_code_2(tmp_path, mistake, monkeypatch, capsys):
    change, sentence = BROKEN[mistake]
    path = write_policy(tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ConfigError, match=sentence):
        HolderPolicy.load(path)
    monkeypatch.setattr("sys.argv", ["fedlearn", "client", "roster", "show", "--policy", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.out == ""
    assert len(told.err.splitlines()) == 1


def test_no_file_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"without a policy nothing is accepted: copy clients/client.example.toml"):
        HolderPolicy.load(tmp_path / "client.toml")


def test_another_roster_than_the_pinned_one_is_refused(tmp_path):
    path = write_policy(tmp_path)
    (tmp_path / "roster.toml").write_bytes(small_roster().content + b"\n")
    with pytest.raises(RefusedError, match=r"its SHA-256 is [0-9a-f]{64}; .* accepts [0-9a-f]{64}"):
        HolderPolicy.load(path)


def test_no_roster_is_refused(tmp_path):
    path = write_policy(tmp_path)
    (tmp_path / "roster.toml").unlink()
    with pytest.raises(ConfigError, match="accept one with fedlearn client roster accept"):
        HolderPolicy.load(path)


def test_a_roster_without_this_holder_is_refused(tmp_path):
    path = write_policy(tmp_path, {"client_id": f'"{"77" * 16}"'})
    with pytest.raises(ConfigError, match="the roster has no such member"):
        HolderPolicy.load(path)


def test_a_damaged_list_of_confirmed_members_is_refused(tmp_path):
    path = write_policy(tmp_path)
    (tmp_path / "confirmed.toml").write_text('format = "fedlearn/v1/roster"\nmember = []\n')
    with pytest.raises(ConfigError, match='not one of format "fedlearn/v1/confirmed"'):
        HolderPolicy.load(path)


def test_confirmed_members_are_no_strangers_and_neither_is_the_holder_itself(tmp_path):
    path = write_policy(tmp_path)
    (tmp_path / "confirmed.toml").write_bytes(Confirmations((entry(1), coordinator())).to_bytes())
    assert HolderPolicy.load(path).for_dataset("digits").unconfirmed == 2


@pytest.mark.parametrize("changed", [{"key": key(50).public}, {"name": "Benno"}, {"client_id": b"\x09" * 16}])
def test_who_was_confirmed_with_another_key_name_or_id_is_a_stranger(changed):
    confirmed = Confirmations((entry(1),))
    assert confirmed.holds(entry(1))
    assert confirmed.holds(replace(entry(1), contact="moved"))
    assert not confirmed.holds(replace(entry(1), **changed))


def test_confirmations_survive_their_file():
    confirmed = Confirmations((entry(2), entry(1)))
    assert Confirmations.from_bytes(confirmed.to_bytes()).to_bytes() == confirmed.to_bytes()
    assert Confirmations.from_bytes(Confirmations(()).to_bytes()) == Confirmations(())


def test_a_run_meets_the_one_data_set_of_its_kind(tmp_path, load_digits):
    path = write_policy(tmp_path)
    assert HolderPolicy.load(path).dataset_of(load_digits(*FOUR)) == "digits"
    with pytest.raises(RefusedError, match=r'none for a run whose data.dataset is "breast-cancer"'):
        HolderPolicy.load(path).dataset_of(load_digits("data.dataset=breast-cancer"))
    text = path.read_text()
    section = text[text.index("[dataset.digits]") : text.index("[limits]")]
    path.write_text(text + section.replace("[dataset.digits]", "[dataset.more]"))
    with pytest.raises(RefusedError, match="more than one"):
        HolderPolicy.load(path).dataset_of(load_digits(*FOUR))


def test_a_data_set_that_the_file_does_not_have_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match='data set "other"; the policy has digits'):
        HolderPolicy.load(write_policy(tmp_path)).for_dataset("other")


def test_the_shipped_example_loads_with_its_placeholders_filled(tmp_path):
    text = (shipped_root() / "clients" / "client.example.toml").read_text(encoding="utf-8")
    path = tmp_path / "client.toml"
    path.write_text(text)
    (tmp_path / "roster.toml").write_bytes(small_roster().content)
    with pytest.raises(RefusedError, match=f"accepts {'0' * 64}"):
        HolderPolicy.load(path)
    filled = text.replace('"' + "0" * 64, '"' + small_roster().sha256.hex()).replace(
        '"' + "0" * 32, f'"{client_id(0).hex()}'
    )
    path.write_text(filled)
    policy = HolderPolicy.load(path)
    assert policy.for_dataset("patients").modes == ("record-distributed", "record-local")
    assert policy.dataset["patients"].kind == "csv"


def test_the_example_and_its_page_name_every_key():
    page = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
    example = (shipped_root() / "clients" / "client.example.toml").read_text(encoding="utf-8")
    sections = {name: field.annotation for name, field in HolderPolicy.model_fields.items()}
    sections["dataset"] = sections["dataset"].__args__[1]
    for section, model in sections.items():
        for name in model.model_fields:
            assert f"| `{section}.{'ID.' if section == 'dataset' else ''}{name}` |" in page
            assert f"\n{name} = " in example
    assert sum(len(model.model_fields) for model in sections.values()) == len(KEYS)


def test_a_roster_is_only_what_it_was_written_as():
    assert Roster.from_bytes(small_roster().content) == small_roster()
