import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.data.partition import PARTITIONS, make_partition
from fedlearn.errors import ConfigError

DIVISIONS = [name for name in PARTITIONS if name != "drawn"]


def partition(name, labels, population_size, *, alpha=0.3, seed=7, clients=None, client_names=(), client_records=0):
    return make_partition(
        name,
        labels=np.asarray(labels, dtype=np.int64),
        clients=clients,
        population_size=population_size,
        alpha=alpha,
        seed=seed,
        client_names=client_names,
        client_records=client_records,
    )


labels_and_clients = st.integers(1, 40).flatmap(
    lambda population: st.tuples(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, population - 1)), max_size=120), st.just(population)
    )
)


@pytest.mark.parametrize("name", DIVISIONS)
@settings(max_examples=60, deadline=None)
@given(drawn=labels_and_clients, seed=st.integers(0, 2**32), alpha=st.sampled_from([1e-3, 0.1, 1.0, 1e4]))
def test_clients_are_disjoint_increasing_and_complete(name, drawn, seed, alpha):
    pairs, population = drawn
    owners = np.array([owner for _, owner in pairs], dtype=np.int64)
    names = tuple(f"client {k}" for k in range(population))
    labels = [label for label, _ in pairs]
    parts = partition(name, labels, population, alpha=alpha, seed=seed, clients=owners, client_names=names)
    held = [parts(client) for client in range(population)]
    assert all(np.all(np.diff(indices) > 0) for indices in held)
    np.testing.assert_array_equal(np.sort(np.concatenate(held)), np.arange(len(pairs)))


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards"])
def test_seed_decides_the_partition(name):
    labels = np.arange(200) % 10
    first, again, other = (partition(name, labels, 5, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first(client), again(client)) for client in range(5))
    assert not all(np.array_equal(first(client), other(client)) for client in range(5))


def test_a_call_does_not_depend_on_earlier_calls():
    parts = partition("shards", np.arange(200) % 10, 5)
    before = parts(3)
    parts(0), parts(4)
    np.testing.assert_array_equal(parts(3), before)


def test_iid_sizes_differ_by_at_most_one():
    parts = partition("iid", np.zeros(103), 10)
    assert {len(parts(client)) for client in range(10)} == {10, 11}


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards"])
def test_more_clients_than_records_gives_empty_clients(name):
    parts = partition(name, [0, 1, 1], 50)
    sizes = [len(parts(client)) for client in range(50)]
    assert sum(sizes) == 3
    assert 0 in sizes


def test_shards_hold_at_most_few_labels():
    labels = np.repeat(np.arange(10), 100)
    parts = partition("shards", labels, 50)
    assert max(len(np.unique(labels[parts(client)])) for client in range(50)) <= 2


def test_small_alpha_is_more_uneven_than_large():
    labels = np.repeat(np.arange(10), 100)
    spread = {
        alpha: np.std([len(partition("dirichlet", labels, 10, alpha=alpha)(client)) for client in range(10)])
        for alpha in (0.1, 100.0)
    }
    assert spread[0.1] > 5 * spread[100.0]


@pytest.mark.parametrize(
    ("name", "population", "seconds"),
    [("iid", 10**6, 1), ("shards", 10**6, 1), ("drawn", 10**6, 0.1), ("dirichlet", 10**5, 10)],
)
def test_a_million_clients_cost_nothing(name, population, seconds):
    started = time.process_time()
    parts = partition(name, np.arange(60_000) % 10, population, client_records=60)
    parts(population - 1)
    assert time.process_time() - started < seconds


def test_drawn_clients_hold_as_many_records_each_and_every_record_is_as_likely():
    parts = partition("drawn", np.zeros(50), 4000, client_records=5)
    held = [parts(client) for client in range(4000)]
    assert all(len(indices) == 5 and np.all(np.diff(indices) > 0) for indices in held)
    counts = np.bincount(np.concatenate(held), minlength=50)
    # 49 degrees of freedom: above 109 in one run of 10^6.
    assert ((counts - 400) ** 2 / 400).sum() < 109
    np.testing.assert_array_equal(parts(17), partition("drawn", np.zeros(50), 4000, client_records=5)(17))
    assert len({tuple(indices) for indices in held}) > 3900


@pytest.mark.parametrize("client_records", [0, 51])
def test_drawn_without_a_usable_number_of_records_is_refused(client_records):
    with pytest.raises(ConfigError, match=r"privacy\.planned_records"):
        partition("drawn", np.zeros(50), 10, client_records=client_records)


@pytest.mark.parametrize("alpha", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_dirichlet_without_a_usable_alpha_is_refused(alpha):
    with pytest.raises(ConfigError, match=r"data\.alpha"):
        partition("dirichlet", [0, 1], 2, alpha=alpha)


def test_natural_needs_clients_in_the_data():
    with pytest.raises(ConfigError, match="name no client"):
        partition("natural", [0, 1], 2)


def test_natural_names_the_number_it_needs():
    with pytest.raises(ConfigError, match=r"population_size is 3; .* needs 2.*\(north, south\)"):
        partition("natural", [0, 1], 3, clients=np.array([0, 1]), client_names=("north", "south"))


def test_natural_client_without_records_is_empty():
    parts = partition("natural", [0, 1], 3, clients=np.array([0, 2]), client_names=("a", "b", "c"))
    assert [parts(client).tolist() for client in range(3)] == [[0], [], [1]]


@pytest.mark.parametrize(("name", "nearest"), [("idd", "iid"), ("dirichlett", "dirichlet")])
def test_unknown_partition_is_one_sentence(name, nearest):
    with pytest.raises(ConfigError, match=f"did you mean {nearest}"):
        partition(name, [0], 1)


def test_population_below_one_is_refused():
    with pytest.raises(ConfigError, match="population_size is 0"):
        partition("iid", [0], 0)
