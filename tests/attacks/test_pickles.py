"""R21: nothing here loads a pickle, and one that is put where a file is read is a sentence; it never runs."""

import ast
import os
import pickle
from pathlib import Path

import pytest
import torch

import fedlearn
from fedlearn.cli import main
from fedlearn.errors import ConfigError, FedlearnError, RefusedError
from fedlearn.holder.frames import REFUSAL
from fedlearn.ledger import Ledger
from fedlearn.policy.roster import Roster
from fedlearn.simulation.run import resume

ROOT = Path(__file__).parent.parent.parent
SOURCES = [path for folder in ("fedlearn", "clients", "server") for path in (ROOT / folder).rglob("*.py")]
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {"torch.load", "torch.save", "torch.jit.load", "np.load", "numpy.load", "pd.read_pickle", "np.fromfile"}


class Bomb:
    """Says that it ran, as soon as it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.fixture(params=["pickle", "torch"])
def bomb(request, tmp_path):
    """The bytes of a pickle that makes the folder `tmp_path/ran` where it is loaded."""
    if request.param == "pickle":
        yield pickle.dumps(Bomb(tmp_path / "ran"))
    else:
        torch.save({"weights": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
        yield (tmp_path / "bomb.pt").read_bytes()
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    fedlearn.simulate(fedlearn.RunConfig.load("digits", ["run.rounds=1"]), output=folder)
    return folder


def spoil(folder, name, content):
    """Put other bytes in a file's place; what they were."""
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    return before


def names_used(path):
    """Imported modules, and dotted names that are called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func)
            yield from (keyword.arg for keyword in node.keywords if keyword.arg in ("allow_pickle", "weights_only"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_r21_no_module_can_load_a_pickle(path):
    assert not set(names_used(path)) & (UNPICKLERS | LOADERS | {"allow_pickle", "weights_only"})


def test_r21_the_bomb_goes_off_where_a_pickle_is_loaded(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("checkpoint.safetensors", resume),
        ("model.safetensors", fedlearn.load_model),
        ("ledger.db", lambda folder: Ledger(folder / "ledger.db")),
        ("ledger.db.count", lambda folder: Ledger(folder / "ledger.db")),
        ("roster.toml", lambda folder: Roster.from_bytes((folder / "roster.toml").read_bytes())),
        ("config.toml", resume),
    ],
)
def test_r21_a_pickle_in_a_files_place_is_one_sentence_and_does_not_run(finished, bomb, name, read):
    before = spoil(finished, name, bomb)
    try:
        with pytest.raises((ConfigError, RefusedError)) as refusal:
            read(finished)
        assert "\n" not in str(refusal.value)
    finally:
        (finished / name).write_bytes(before)


def test_r21_a_pickle_given_as_a_ledger_is_exit_code_2(tmp_path, bomb, monkeypatch, capsys):
    (tmp_path / "ledger.db").write_bytes(bomb)
    monkeypatch.setattr("sys.argv", ["fedlearn", "client", "ledger", "show", "--ledger", str(tmp_path / "ledger.db")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_r21_a_pickle_sent_as_a_model_or_a_configuration_is_a_refusal(play, load_plain, bomb):
    party = play(load_plain())
    party.advertise()
    party.model = bomb
    assert party.masked() == REFUSAL
    assert party.pool.handle(1, "advertise", party.frame("advertise", bomb)) == REFUSAL
    with pytest.raises(FedlearnError):
        fedlearn.RunConfig.from_bytes(bomb)
