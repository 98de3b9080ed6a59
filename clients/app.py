"""The Flower ClientApp of a node: an import, for the bundle must not carry the library."""

from fedlearn.flower.node_app import app

__all__ = ["app"]
