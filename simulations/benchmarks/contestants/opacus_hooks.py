"""A loop of one's own over clients with Opacus: one resident model with hooks and one resident private optimizer."""

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus_cnn import build
from torch.nn import functional

from contestants.workload import given, load_records, round_done, started


def main() -> None:
    """Run the rounds: federated averaging of clients that each take DP-SGD steps."""
    asked = given()
    workload = asked.workload
    assert workload.record_clip is not None, "for workloads with DP-SGD alone"
    torch.set_num_threads(1)
    features, labels = (torch.from_numpy(part).to(asked.device) for part in load_records(asked.data))
    model = GradSampleModule(build().to(asked.device))
    parameters = list(model.parameters())
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters, lr=workload.learning_rate),
        noise_multiplier=1.0,
        max_grad_norm=workload.record_clip,
        expected_batch_size=workload.batch_size,
    )
    share = workload.batch_size / workload.records
    weights = [parameter.detach().clone() for parameter in parameters]
    order = torch.randperm(workload.population).tolist()
    started()
    for number in range(asked.rounds):
        moved = [torch.zeros_like(weight) for weight in weights]
        for place in range(workload.cohort):
            client = order[(number * workload.cohort + place) % workload.population]
            mine = slice(client * workload.records, (client + 1) * workload.records)
            inputs, targets = features[mine], labels[mine]
            with torch.no_grad():
                for parameter, weight in zip(parameters, weights, strict=True):
                    parameter.copy_(weight)
            for _ in range(workload.records // workload.batch_size):
                chosen = torch.rand(workload.records, device=asked.device) < share
                optimizer.zero_grad()
                if chosen.any():
                    functional.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
                    optimizer.step()
            with torch.no_grad():
                for total, parameter, weight in zip(moved, parameters, weights, strict=True):
                    total += parameter - weight
        weights = [weight + total / workload.cohort for weight, total in zip(weights, moved, strict=True)]
        round_done()


if __name__ == "__main__":
    main()
