"""pfl-research in one process, as its own examples set it up: one resident model, tensors ready, no scoring."""

import numpy as np
import torch
from opacus_cnn import build
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from pfl.privacy import CentrallyAppliedPrivacyMechanism, GaussianMechanism
from torch import Tensor, nn
from torch.nn import functional

from contestants.workload import given, load_records, round_done, started


class _Trained(nn.Module):
    """The model with the two methods that pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = build()

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        return self.layers(inputs)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimized."""
        return functional.cross_entropy(self(inputs), targets)

    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, object]:
        """None."""
        del inputs, targets
        return {}


class _Reporting(TrainingProcessCallback):
    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Say that a round is over."""
        del aggregate_metrics, model, central_iteration
        round_done()
        return False, Metrics()


def main() -> None:
    """Run the rounds."""
    asked = given()
    workload = asked.workload
    torch.set_num_threads(1)
    features, labels = (torch.from_numpy(part).to(asked.device) for part in load_records(asked.data))

    def records_of(client: int) -> Dataset:
        mine = slice(client * workload.records, (client + 1) * workload.records)
        return Dataset([features[mine], labels[mine]], user_id=str(client))

    users = list(range(workload.population))
    clients = FederatedDataset(records_of, get_user_sampler("minimize_reuse", users))
    module = _Trained()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    privacy = []
    if workload.client_clip is not None:
        privacy = [CentrallyAppliedPrivacyMechanism(GaussianMechanism(workload.client_clip, 1.0))]
    np.random.seed(0)
    started()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=asked.rounds,
            evaluation_frequency=10**9,
            train_cohort_size=workload.cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=clients, val_data=clients, postprocessors=privacy),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=workload.learning_rate, local_batch_size=workload.batch_size
        ),
        callbacks=[_Reporting()],
    )


if __name__ == "__main__":
    main()
