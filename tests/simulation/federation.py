"""A small unmasked federation in this process, and a coordinator's model."""

from fedlearn.coordinator.pooled_data import load_simulated_data
from fedlearn.model.layout import write_model
from fedlearn.model.vector import layout_of, read_parameters
from fedlearn.simulation.cohorts import SimulatedCohorts

SESSION = "0123456789abcdef" * 2
UNMASKED = (
    "secure_aggregation.masking=false",
    "secure_aggregation.scale_bits=14",
    "privacy.target_epsilon=8",
    "privacy.delta=1e-4",
    "run.rounds=3",
    "run.spare_rounds=0",
    "privacy.max_participations=3",
)
MLP = ("model.name=mlp", "privacy.clipping_norm=1.0")


class Federation:
    """The clients of a digits run, and a coordinator's model."""

    def __init__(self, config, folder, entropy=None):
        folder.mkdir(exist_ok=True)
        self.config, self.data = config, load_simulated_data(config)
        self.cohorts = SimulatedCohorts(self.data, folder, entropy=entropy)
        model = self.data.build_model(config)
        self.weights, layout = read_parameters(model), layout_of(model)
        self.model = write_model(self.weights, layout)

    def total(self, members=range(10), number=1, attempt=0, lost=()):
        position = (SESSION, number, attempt)
        if self.cohorts.agree(position, members, self.config.to_bytes()) != members:
            raise AssertionError("all agree")
        return self.cohorts.total(position, members, self.model, lost)
