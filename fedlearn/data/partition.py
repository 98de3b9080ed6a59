"""Who holds which records in a simulation: a function from client id to record indices, computed when asked.

No list of clients is kept: the state is a permutation of the records, in `shards` one of the shards, so that a
million clients cost nothing until they are called.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ConfigError
from fedlearn.wording import did_you_mean

__all__ = ["PARTITIONS", "Partition", "make_partition"]

Partition = Callable[[int], NDArray[np.int64]]  # client id in [0, population_size) -> increasing record indices

SHARDS_PER_CLIENT = 2  # McMahan et al. 2017 (arXiv:1602.05629), section 3
_PARTITION_STREAM = 0x70617274  # keeps these draws apart from the other uses of run.seed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Records:
    labels: NDArray[np.int64]
    clients: NDArray[np.int64] | None
    client_names: tuple[str, ...]
    population_size: int
    alpha: float | None
    client_records: int
    seed: int
    generator: np.random.Generator  # noqa: TID251 - a partition is public and repeatable


def make_partition(
    name: str,
    *,
    labels: NDArray[np.int64],
    clients: NDArray[np.int64] | None,
    population_size: int,
    alpha: float | None,
    seed: int,
    client_names: tuple[str, ...] = (),
    client_records: int = 0,
) -> Partition:
    """Divide the records of `labels` (n,) among `population_size` clients.

    * `iid`: a random permutation cut into equal parts (sizes differ by at most one).
    * `dirichlet`: each class is divided in proportions drawn from a symmetric Dirichlet(`alpha`) over the clients.
    * `shards`: the records sorted by label, cut into 2 shards a client (McMahan et al. 2017), two random ones to each.
    * `natural`: client k holds the records with `clients` == k; `population_size` is the number of natural clients.
    * `drawn`: a made-up population: each client draws `client_records` records of its own, without looking at others,
      so that clients may share some: no division, and fit only where a client is what is protected.

    Guarantees: the clients' indices are increasing; but for `drawn` they are disjoint and together are all records; the
    same seed gives the same partition; a client may be empty, and some are where there are more clients than records.

    Raises ConfigError for an unknown name, a population below 1, a missing or impossible `alpha` or `client_records`,
    and records without natural clients or with another number of them.
    """
    if name not in PARTITIONS:
        meant = did_you_mean(name, PARTITIONS)
        hint = f"; {meant}" if meant else ""
        raise ConfigError(f"data.partition is {name!r}; expected one of {', '.join(PARTITIONS)}{hint}")
    if population_size < 1:
        raise ConfigError(f"data.population_size is {population_size}; expected at least 1 client")
    generator = np.random.default_rng([_PARTITION_STREAM, seed])  # noqa: TID251 - partitions are seeded by run.seed
    return PARTITIONS[name](
        _Records(
            labels=labels,
            clients=clients,
            client_names=client_names,
            population_size=population_size,
            alpha=alpha,
            client_records=client_records,
            seed=seed,
            generator=generator,
        )
    )


def _iid(records: _Records) -> Partition:
    order = records.generator.permutation(len(records.labels))
    count, population = len(order), records.population_size

    def client_records(client: int) -> NDArray[np.int64]:
        assert 0 <= client < population
        return np.sort(order[client * count // population : (client + 1) * count // population])

    return client_records


def _dirichlet(records: _Records) -> Partition:
    alpha, population = records.alpha, records.population_size
    if alpha is None or not (math.isfinite(alpha) and alpha > 0):
        came = "missing" if alpha is None else repr(alpha)
        raise ConfigError(
            f'data.alpha is {came}; partition "dirichlet" needs a number above 0 (0.1 very uneven, 100 nearly even)'
        )
    owners = np.empty(len(records.labels), dtype=np.int64)
    for label in np.unique(records.labels):
        members = records.generator.permutation(np.flatnonzero(records.labels == label))
        edges = np.cumsum(records.generator.dirichlet(np.full(population, alpha)))
        middles = (np.arange(len(members)) + 0.5) / len(members)
        # Float sums may end just below 1: the last edge is never needed.
        owners[members] = np.searchsorted(edges[:-1], middles, side="right")
    return _by_owner(owners, population)


def _shards(records: _Records) -> Partition:
    # Sorting a shuffled order keeps records of one label in random order among themselves.
    shuffled = records.generator.permutation(len(records.labels))
    by_label = shuffled[np.argsort(records.labels[shuffled], kind="stable")]
    count, population = len(by_label), records.population_size
    shards = SHARDS_PER_CLIENT * population
    dealt = records.generator.permutation(shards)

    def client_records(client: int) -> NDArray[np.int64]:
        assert 0 <= client < population
        mine = dealt[SHARDS_PER_CLIENT * client : SHARDS_PER_CLIENT * (client + 1)].tolist()
        return np.sort(np.concatenate([by_label[s * count // shards : (s + 1) * count // shards] for s in mine]))

    return client_records


def _natural(records: _Records) -> Partition:
    if records.clients is None:
        raise ConfigError(
            'data.partition is "natural", but these records name no client; for csv or parquet set data.client_column, '
            "for the others choose iid, dirichlet or shards"
        )
    known = len(records.client_names) or int(records.clients.max(initial=-1)) + 1
    if records.population_size != known:
        names = f" ({', '.join(records.client_names[:8])})" if 0 < len(records.client_names) <= 8 else ""
        raise ConfigError(
            f"data.population_size is {records.population_size}; "
            f'partition "natural" needs {known}, the number of clients in the data{names}'
        )
    return _by_owner(records.clients, known)


def _drawn(records: _Records) -> Partition:
    each, known, population = records.client_records, len(records.labels), records.population_size
    if not 1 <= each <= known:
        raise ConfigError(
            f'partition "drawn" gives each client planned_records / population_size = {each} records; expected 1 to '
            f"{known}, for so many there are: change privacy.planned_records"
        )

    def client_records(client: int) -> NDArray[np.int64]:
        assert 0 <= client < population
        own = np.random.default_rng([_PARTITION_STREAM, records.seed, client])  # noqa: TID251 - seeded by run.seed
        return np.sort(own.choice(known, each, replace=False, shuffle=False))

    return client_records


def _by_owner(owners: NDArray[np.int64], population: int) -> Partition:
    """The partition in which record i belongs to client owners[i]; the stable sort keeps indices increasing."""
    order = np.argsort(owners, kind="stable")
    sorted_owners = owners[order]

    def client_records(client: int) -> NDArray[np.int64]:
        assert 0 <= client < population
        start, end = np.searchsorted(sorted_owners, [client, client + 1])
        return order[start:end]

    return client_records


PARTITIONS: dict[str, Callable[[_Records], Partition]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "shards": _shards,
    "natural": _natural,
    "drawn": _drawn,
}
