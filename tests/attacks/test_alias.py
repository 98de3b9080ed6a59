"""The same stored rows under a second id are refused, however a coordinator changes what it asks of them."""

from pathlib import Path

import pytest

from fedlearn.config.run_config import RunConfig
from fedlearn.config.schema import schema_sha256
from fedlearn.holder.deployed import DeployedAgent
from fedlearn.round.source import Source
from fedlearn.secagg.aggregator import AttemptFailedError
from tests.holder.test_deployed_agent import Federation
from tests.holder_files import FOUR, table_source

OTHER_SESSION = "fedcba9876543210" * 2


class OfTables(Federation):
    source = Source("csv", Path("never-opened.csv"))


def asked(high: str, values: str) -> tuple[str, ...]:
    columns = (f"data.columns.age={{low=0, high={high}}}", f"data.columns.marker={{values={values}}}")
    return ("data.dataset=csv", "data.label=ill", 'data.classes=[["no"], ["yes"]]', *columns)


@pytest.mark.parametrize(
    ("high", "values"),
    [("100.0", '["A", "B"]'), ("100.0001", '["A", "B"]'), ("100.0", '["B", "A"]')],
    ids=["the same schema", "a bound changed by a hair", "another order of values"],
)
def test_rows_that_were_spent_under_one_id_are_not_spent_under_another(tmp_path: Path, high: str, values: str) -> None:
    for member in range(4):
        (tmp_path / str(member)).mkdir()
        rows = "".join(
            f"{20 + number + member},{'AB'[number % 2]},{'yes' if number % 3 else 'no'}\n" for number in range(20)
        )
        (tmp_path / str(member) / "records.csv").write_text(f"age,marker,ill\n{rows}")
    first = asked("100.0", '["A", "B"]')
    before = RunConfig.load("digits", [*FOUR, *first])
    parties = OfTables(tmp_path, {"source": table_source("records.csv", before)}, *first)
    assert parties.run().survivors == 4
    parties.close()

    after = RunConfig.load("digits", [*FOUR, *asked(high, values)])
    for member in range(4):
        path = tmp_path / str(member) / "client.toml"
        text = path.read_text().replace("[dataset.digits]", "[dataset.ward]")
        path.write_text(text.replace(schema_sha256(before.data), schema_sha256(after.data)))
    parties.agents = [DeployedAgent(tmp_path / str(member) / "client.toml") for member in range(4)]
    parties.config = after
    with pytest.raises(AttemptFailedError, match="0 clients"):
        parties.run(session=OTHER_SESSION)
    parties.close()
