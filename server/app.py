"""The Flower ServerApp of a run: an import, for the bundle must not carry the library."""

from fedlearn.flower.server_app import app

__all__ = ["app"]
