"""`fedlearn doctor`: what is wrong with an installation, a data holder's home or a coordinator's, and what to do."""

from fedlearn.deployment.doctor.check import Check
from fedlearn.deployment.doctor.examination import examine

__all__ = ["Check", "examine"]
