"""What a user does wrong: one sentence that names the place, exit code 2, no traceback, nothing written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.cli import main

OWN_MODELS = """
from torch import nn

def with_batch_norm(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))

def of_the_wrong_width(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def no_module(input_shape, classes):
    return 3

def that_raises(input_shape, classes):
    raise RuntimeError("two\\nlines")
"""

CSV = (
    "data.dataset=csv",
    "data.path=table.csv",
    "data.label=y",
    'data.classes=[["0"], ["1"]]',
    "data.population_size=10",
    "data.columns.a={low=0, high=5}",
)
COLUMN_B = "data.columns.b={low=0, high=9}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a user's broken files in it."""
    place = tmp_path / "work"
    (place / "full").mkdir(parents=True)
    (place / "full" / "note.txt").write_text("mine")
    (place / "damaged").mkdir()
    (place / "damaged" / "config.toml").write_text("nonsense")
    (place / "own_models.py").write_text(OWN_MODELS)
    (place / "table.csv").write_text("a,b,y\n1,2,0\n3,x,1\n5,6,0\n2,2,1\n")
    (place / "ragged.csv").write_text("a,b,y\n1,2\n")
    (place / "empty.csv").write_text("")
    (place / "broken.toml").write_text("[run\n")
    (place / "latin.toml").write_bytes(b"[run]\nname = '\xff'\n")
    (place / "empty.toml").write_text("")
    (place / "digits.toml").write_text("[run]\nrounds = " + "1" * 5000)
    (place / "nested.toml").write_text("a = " + "[" * 100_000)
    (place / "dangling").symlink_to("nowhere")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return place


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder` with its bytes."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def simulate(*overrides: str) -> tuple[str, ...]:
    """The command with a `--set` for each override."""
    return ("simulate", *(word for override in overrides for word in ("--set", override)))


CASES: dict[str, tuple[tuple[str, ...], str]] = {
    # keys
    "unknown key": (simulate("privacy.epsilom=3"), r"privacy\.epsilom .*did you mean privacy\.target_epsilon\?"),
    "unknown section": (simulate("privcy.mode=none"), r"privcy .*did you mean privacy\?"),
    "key of another section": (simulate("run.learning_rate=3"), r"did you mean training\.learning_rate\?"),
    "key that would set the noise": (simulate("privacy.noise_multiplier=1"), r"privacy\.noise_multiplier is not a key"),
    "key of shuffling": (simulate("training.shuffle=true"), r"training\.shuffle is not a key"),
    "key of adaptive clipping": (
        simulate("privacy.adaptive_clipping=true"),
        r"privacy\.adaptive_clipping is not a key",
    ),
    "unknown key of a column": (simulate(*CSV, "data.columns.b={lo=0, high=9}"), r"columns\.b\.lo .*columns\.b\.low\?"),
    # types
    "text for an integer": (simulate("run.rounds=many"), r'run\.rounds is "many"; expected an integer'),
    "fraction for an integer": (simulate("run.rounds=3.5"), r"run\.rounds is 3\.5; expected an integer"),
    "boolean for a number": (simulate("privacy.target_epsilon=true"), r"target_epsilon is true; expected a number"),
    "integer for a boolean": (simulate("secure_aggregation.masking=1"), r"masking is 1; expected true or false"),
    "number for a list": (simulate("secure_aggregation.stage_seconds=3"), r"stage_seconds is 3; expected a list"),
    "number for a table": (simulate("model.options=3"), r"model\.options is 3; expected a table"),
    # ranges
    "no rounds": (simulate("run.rounds=0"), r"run\.rounds is 0; expected a number of at least 1"),
    "negative seed": (simulate("run.seed=-1"), r"run\.seed is -1; expected a number of at least 0"),
    "epsilon zero": (simulate("privacy.target_epsilon=0"), r"target_epsilon is 0; expected a number above 0"),
    "epsilon not finite": (simulate("privacy.target_epsilon=inf"), r"target_epsilon is inf; expected a finite number"),
    "epsilon not a number": (simulate("privacy.target_epsilon=nan"), r"target_epsilon is nan; expected a finite"),
    "epsilon out of reach": (simulate("privacy.target_epsilon=1e-9"), r"scale_bits is 20; expected at most"),
    "delta of one": (simulate("privacy.delta=1"), r"privacy\.delta is 1; expected a number below 1"),
    "delta too large": (simulate("privacy.delta=0.01"), r"privacy\.delta is 0\.01; expected at most 1/planned_records"),
    "probability of zero": (simulate("privacy.sampling_probability=0"), r"sampling_probability is 0; expected a prob"),
    "probability above one": (simulate("privacy.sampling_probability=3/2"), r'probability is "3/2"; expected a prob'),
    "probability over zero": (simulate("privacy.sampling_probability=1/0"), r'probability is "1/0"; expected'),
    "probability too long": (simulate("privacy.sampling_probability=0.12345678901"), r"at most 9 decimals"),
    "probability too small to write": (
        simulate("privacy.sampling_probability='1e-999999999'"),
        r"is \"1e-999999999\";",
    ),
    "too few participations": (simulate("privacy.max_participations=3"), r"max_participations is 3; expected at least"),
    "scale_bits above 20": (simulate("secure_aggregation.scale_bits=21"), r"scale_bits is 21; expected .* at most 20"),
    "scale_bits too large": (simulate("privacy.clipping_norm=500"), r"scale_bits is 20; expected at most 18"),
    "scale_bits too small": (simulate("secure_aggregation.scale_bits=3"), r"scale_bits is 3; expected a grid so fine"),
    "no learning rate": (simulate("training.learning_rate=0"), r"learning_rate is 0; expected a number above 0"),
    "certain dropout": (simulate("runtime.dropout=1"), r"runtime\.dropout is 1; expected a number below 1"),
    "two stages": (simulate("secure_aggregation.stage_seconds=[1, 2]"), r"stage_seconds is too short with 2 entries"),
    "six stages": (simulate("secure_aggregation.stage_seconds=[1,2,3,4,5,6]"), r"has 6 entries; expected at most 5"),
    # names
    "unknown mode": (simulate("privacy.mode=dp"), r'privacy\.mode is "dp"; expected one of client-central, .*none'),
    "unknown data set": (simulate("data.dataset=mnist"), r'dataset is "mnist"; .*did you mean fashion-mnist\?'),
    "unknown partition": (simulate("data.partition=zipf"), r'data\.partition is "zipf"; expected one of dirichlet'),
    "unknown strategy": (simulate("training.strategy=FedProx"), r'strategy is "FedProx"; expected one of FedAdagrad'),
    "unknown engine": (("simulate", "--engine", "gpu"), r'runtime\.engine is "gpu"; expected one of'),
    "unknown device": (simulate("runtime.device=tpu"), r'runtime\.device is "tpu"; expected one of'),
    "unknown scenario": (("simulate", "digit"), r"digit: no scenario of that name \(did you mean digits\?\)"),
    "name that is a terminal's command": (("simulate", "a\n\x1b[31mb"), r"a \\x1b\[31mb: no scenario of that name"),
    # combinations
    "too many to mask": (
        simulate("secure_aggregation.planned_cohort=300", "data.population_size=300"),
        r"planned_cohort is 300; expected 3 to 256 with masking",
    ),
    "cohort above the population": (
        simulate("data.population_size=5"),
        r"planned_cohort is 10; .*population, 5 clients",
    ),
    "more survivors than asked": (simulate("secure_aggregation.min_survivors=11"), r"min_survivors is 11; expected at"),
    "survivors below the threshold": (
        simulate("secure_aggregation.min_survivors=1"),
        r"min_survivors is 1; expected at",
    ),
    "no colluders": (simulate("secure_aggregation.max_colluders=0"), r"max_colluders is 0; expected at least 1"),
    "too many colluders": (simulate("secure_aggregation.max_colluders=7"), r"max_colluders is 7; expected at most 3"),
    "poisson cohort in a mode of shares": (
        simulate("secure_aggregation.cohorts=poisson"),
        r'cohorts is "poisson" in mode',
    ),
    "natural partition without clients": (
        simulate("data.partition=natural"),
        r'partition is "natural", but .*no client',
    ),
    "dirichlet without alpha": (
        simulate("data.partition=dirichlet"),
        r"data\.alpha is missing; .*\"dirichlet\" needs it",
    ),
    "clients that share records, protecting records": (
        simulate("data.partition=drawn"),
        r'data\.partition is "drawn" in mode "record-distributed"; .* these clients share records',
    ),
    "a Ray cluster where clients mask": (simulate("runtime.ray_address=auto"), r"ray_address is set, and clients mask"),
    "no Ray cluster": (
        simulate("secure_aggregation.masking=false", "runtime.ray_address=127.0.0.1:1"),
        r'ray_address is "127\.0\.0\.1:1", where no Ray cluster listens',
    ),
    "no address of a Ray cluster": (
        simulate("secure_aggregation.masking=false", "runtime.ray_address=here"),
        r'ray_address is "here"; expected host:port',
    ),
    "compile": (
        simulate("runtime.compile=maybe"),
        r"runtime\.compile is \"maybe\"; expected one of True, False or 'auto'",
    ),
    "workers on Ray": (
        simulate("runtime.workers=2", "runtime.engine=ray"),
        r"runtime\.workers is 2; .* on one machine: expected 1",
    ),
    "workers on a GPU": (
        simulate("runtime.workers=2", "secure_aggregation.masking=false", "runtime.device=cuda"),
        r"runtime\.(workers is 2 on device|device is \"cuda\", which PyTorch does not find)",
    ),
    "option of no strategy": (simulate("training.strategy_options.momentum=1"), r"did you mean server_momentum\?"),
    "momentum that diverges": (
        simulate("training.strategy_options.server_momentum=5"),
        r"server_momentum is 5\.0; expec",
    ),
    # files
    "no such TOML file": (("simulate", "nosuch.toml"), r"nosuch\.toml: no such file"),
    "a folder for a TOML file": (("simulate", "full"), r"full: no scenario of that name"),
    "TOML that is none": (("simulate", "broken.toml"), r"broken\.toml: expected a TOML file"),
    "TOML that is not UTF-8": (("simulate", "latin.toml"), r"latin\.toml: expected a TOML file"),
    "TOML with a number that is too long": (("simulate", "digits.toml"), r"digits\.toml: expected a TOML file"),
    "TOML that nests": (("simulate", "nested.toml"), r"nested\.toml: expected a TOML file"),
    "a home that nobody has": (("plan", "~nobody-at-all/run.toml"), r"~nobody-at-all/run\.toml: there is no such home"),
    "data in a home that nobody has": (simulate("data.path=~nobody-at-all/x"), r"there is no such home folder"),
    "data at a path with NUL": (simulate('data.path="a\\u0000b"'), r"no path of a file"),
    "TOML without sections": (("simulate", "empty.toml"), r"empty\.toml: the section run is missing"),
    "--output not empty": (("simulate", "--output", "full"), r"--output full: exists and is not empty"),
    "--output not empty, with --repeat": (
        ("simulate", "--repeat", "2", "--output", "full"),
        r"--output full: exists and",
    ),
    "--output is a file": (("simulate", "--output", "table.csv"), r"--output table\.csv: exists"),
    "--output is a device": (("simulate", "--output", "/dev/null"), r"--output /dev/null: exists"),
    "--output is a link to nothing": (("simulate", "--output", "dangling"), r"--output dangling: the folder cannot"),
    "--output of an audit is a device": (("audit", "mechanism", "--output", "/dev/null"), r"/dev/null: is no folder"),
    "--output of an audit is a link to nothing": (("audit", "mechanism", "--output", "dangling"), r"is no folder"),
    "--output below a file": (("simulate", "--output", "table.csv/run"), r"--output table\.csv/run: the folder cannot"),
    "--resume of nothing": (("simulate", "--resume", "nope"), r"--resume nope: no run folder"),
    "--resume of another folder": (("simulate", "--resume", "full"), r"--resume full: no run folder"),
    "--resume of a damaged run": (("simulate", "--resume", "damaged"), r"damaged/config\.toml: expected a TOML file"),
    "--resume with another run": (("simulate", "digits", "--resume", "full"), r"--resume goes on with a run as it is"),
    "report of nothing": (("report", "nope"), r"nope: no such run folder"),
    "report of another folder": (("report", "full"), r"full: config\.toml is missing"),
    "verify nothing": (("verify", "nope.json", "nope.safetensors"), r"nope\.json: cannot be read"),
    "verify another file": (("verify", "latin.toml", "latin.toml"), r"latin\.toml: expected a certificate"),
    # data
    "csv without a path": (simulate("data.dataset=csv"), r"data\.path is missing"),
    "csv without bounds": (
        simulate(*CSV[:5]),
        r"data\.columns is empty; .*bounds measured on private records would leak",
    ),
    "csv with a column without bounds": (simulate(*CSV), r"table\.csv has the column 'b', which has no bounds"),
    "csv with bounds the wrong way round": (
        simulate(*CSV, "data.columns.b={low=9, high=0}"),
        r"low = 9\.0 and high = 0",
    ),
    "csv with half a bound": (simulate(*CSV, "data.columns.b={low=9}"), r"data\.columns\.b has no high"),
    "csv with a number for a category": (
        simulate(*CSV, 'data.columns.b={values=["x"], impute=2.0}'),
        r"impute is 2\.0",
    ),
    "csv without the label": (simulate(*CSV, COLUMN_B, "data.label=q"), r"table\.csv has no column 'q', which"),
    "csv that is not there": (simulate(*CSV, "data.path=nope.csv"), r"nope\.csv is not a file"),
    "csv with a short row": (simulate(*CSV, COLUMN_B, "data.path=ragged.csv"), r"no record to train on"),
    "csv without a header": (simulate(*CSV, COLUMN_B, "data.path=empty.csv"), r"empty\.csv"),
    "labels where none are chosen": (simulate("data.label=y"), r"data\.label is set, but .*'digits' has no use for it"),
    "share above one": (simulate("data.public_test=2.0"), r"public_test is 2\.0; expected a share"),
    "fashion-mnist elsewhere": (
        simulate("data.dataset=fashion-mnist", "data.path=full"),
        r"run `make data`.*or set data",
    ),
    # models
    "unknown model": (simulate("model.name=resnet"), r'model\.name is "resnet"; expected one of cnn, .*or your own'),
    "model for another shape": (
        simulate("model.name=cnn"),
        r'model\.name is "cnn", which is made for records of shape',
    ),
    "option of no model": (simulate("model.options.depth=3"), r"model\.options\.depth is not an option"),
    "width of zero": (
        simulate("model.name=mlp", "model.options.hidden=[0]"),
        r"hidden is .*expected a list of layer widths",
    ),
    "own model with batch norm": (
        simulate("model.name=own_models:with_batch_norm"),
        r"BatchNorm1d.*use torch.nn.GroupNorm",
    ),
    "own model of the wrong width": (
        simulate("model.name=own_models:of_the_wrong_width"),
        r"gives \(1, 3\).*\(1, 10\)",
    ),
    "own model that is none": (simulate("model.name=own_models:no_module"), r"gave int; expected an nn\.Module"),
    "own model that raises": (simulate("model.name=own_models:that_raises"), r"whose builder failed: RuntimeError"),
    "own model without builder": (simulate("model.name=own_models:nope"), r'"nope" does not exist'),
    "own model that is nowhere": (
        simulate("model.name=nowhere_at_all:build"),
        r"TOML file, the working folder or the env",
    ),
    # the line itself
    "--set without a value": (simulate("run.rounds"), r"--set run\.rounds: expected section\.key=value"),
    "--set without a section": (simulate("rounds=3"), r"--set rounds=3: expected section\.key=value"),
    "--set with a name that is not text": (
        simulate("data.columns.a\udce9.low=0"),
        r"data",
    ),
    "--set with a value that is not text": (simulate("model.name=\udce9"), r"model\.name"),
    "--set with an open quote": (simulate('data.columns."a.low=0'), r"expected section\.key=value"),
    "--set with empty names": (simulate("..=3"), r"--set \.\.=3: expected section\.key=value"),
    "--set below a value": (simulate("run.rounds.x=3"), r"rounds is a value, not a section"),
    "--repeat of nothing": (("simulate", "--repeat", "0"), r"--repeat is 0; expected an integer of at least 1"),
    "unknown option": (
        ("simulate", "--jsn"),
        r"--jsn: no such option \(did you mean --json\?\); see fedlearn simulate",
    ),
    "option without its value": (("simulate", "--set"), r"'--set' requires an argument"),
    "value of another type": (("simulate", "--repeat", "x"), r"'--repeat': 'x' is not a valid integer"),
    "unknown command": (("simulat",), r"simulat: no such command \(did you mean simulate\?\); see fedlearn --help"),
    "missing argument": (("plan",), r"missing argument 'SCENARIO'; see fedlearn plan --help"),
    "plan refused": (("plan", "digits", "--set", "privacy.delta=0.01"), r"privacy\.delta is 0\.01; expected at most"),
}


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 35


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, expected = CASES[case]
    before = contents(folder)
    monkeypatch.setattr(sys, "argv", ["fedlearn", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2, told.err
    assert told.out == ""
    assert_is_one_sentence(told.err, expected)
    assert contents(folder) == before


def assert_is_one_sentence(text: str, expected: str) -> None:
    """One line that begins with the program's name, ends, and says what `expected` (a pattern) says."""
    assert text.startswith("fedlearn: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert text.removesuffix("\n").isprintable()
    assert "Traceback" not in text
    assert re.search(expected, text), text


@pytest.mark.parametrize("mode", ["record-distributed", "record-local", "client-distributed", "client-central", "none"])
def test_every_key_that_a_mode_needs_is_named_when_it_is_missing(
    mode: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedlearn.config.required import REQUIRED_KEYS
    from fedlearn.host.shipped import scenario_path

    whole = scenario_path("digits").read_text(encoding="utf-8")
    for key in REQUIRED_KEYS[mode]:
        name = key.partition(".")[2]
        without = "".join(line for line in whole.splitlines(keepends=True) if not line.startswith(f"{name} ="))
        assert without != whole
        (folder / "lacking.toml").write_text(without)
        monkeypatch.setattr(sys, "argv", ["fedlearn", "plan", "lacking.toml", "--set", f"privacy.mode={mode}"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert_is_one_sentence(capsys.readouterr().err, rf'{re.escape(key)} is missing; mode "{mode}" needs it')


@pytest.mark.parametrize(
    "case",
    ["unknown key", "TOML that is none", "unknown option", pytest.param("delta too large", marks=pytest.mark.slow)],
)
def test_a_real_process_ends_the_same(case: str, folder: Path) -> None:
    words, expected = CASES[case]
    before = contents(folder)
    ended = subprocess.run(
        [sys.executable, "-B", "-m", "fedlearn.cli", *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert_is_one_sentence(ended.stderr, expected)
    assert contents(folder) == before
