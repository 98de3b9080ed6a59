"""Named parameters <-> one vector <-> canonical model bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedlearn.errors import ProtocolError
from fedlearn.model.layout import Layout, read_model, write_model
from fedlearn.model.vector import layout_of, read_parameters, write_parameters


def named_out_of_order() -> nn.Module:
    model = nn.Module()
    model.z = nn.Linear(2, 3)
    model.a = nn.Linear(3, 1)
    return model


def test_the_order_is_that_of_named_parameters_not_of_names():
    assert layout_of(named_out_of_order()).names == ("z.weight", "z.bias", "a.weight", "a.bias")


def test_parameters_survive_the_vector():
    model = named_out_of_order()
    vector = np.arange(13.0)
    write_parameters(model, vector)
    np.testing.assert_array_equal(read_parameters(model), vector)
    np.testing.assert_array_equal(model.z.weight.detach().numpy(), [[0, 1], [2, 3], [4, 5]])


def test_a_frozen_parameter_is_not_in_the_vector_and_stays_as_it_is():
    model = named_out_of_order()
    model.z.weight.requires_grad_(False)
    before = model.z.weight.clone()
    assert layout_of(model).names == ("z.bias", "a.weight", "a.bias")
    write_parameters(model, np.arange(7.0))
    np.testing.assert_array_equal(read_parameters(model), np.arange(7.0))
    assert (model.z.weight == before).all()


def test_a_parameter_without_dimensions_survives_the_vector_and_its_bytes():
    model = nn.Module()
    model.scale, model.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(2))
    vector = np.array([3.0, 4.0, 5.0])
    write_parameters(model, read_model(write_model(vector, layout_of(model)), layout_of(model)))
    np.testing.assert_array_equal(read_parameters(model), vector)
    assert model.scale.shape == ()


def test_split_and_join_are_inverse_whatever_the_order_of_the_mapping():
    layout = Layout(("b", "a"), ((2, 2), (3,)))
    vector = np.arange(7.0)
    parts = dict(reversed(layout.split(vector).items()))
    np.testing.assert_array_equal(layout.join(parts), vector)


shapes = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4)


@given(shapes, st.data())
def test_model_bytes_round_trip_in_float32(sizes, data):
    layout = Layout(tuple(f"p{k}" for k in range(len(sizes))), tuple(sizes))
    numbers = st.floats(width=32, allow_nan=False)
    values = data.draw(st.lists(numbers, min_size=layout.dimension, max_size=layout.dimension))
    weights = np.array(values, dtype=np.float64)
    np.testing.assert_array_equal(read_model(write_model(weights, layout), layout), weights)


@given(st.binary(max_size=80))
def test_other_bytes_are_a_protocol_error(body):
    layout = Layout(("weight", "bias"), ((2, 2), (2,)))
    genuine = write_model(np.zeros(6), layout)
    if len(body) == len(genuine) and body[:20] == genuine[:20]:
        return
    with pytest.raises(ProtocolError):
        read_model(body, layout)


def test_a_model_of_another_name_or_shape_is_a_protocol_error():
    body = write_model(np.zeros(6), Layout(("weight", "bias"), ((2, 2), (2,))))
    for other in (Layout(("weighs", "bias"), ((2, 2), (2,))), Layout(("weight", "bias"), ((4, 1), (2,)))):
        with pytest.raises(ProtocolError):
            read_model(body, other)
