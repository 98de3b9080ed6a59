"""An entry for a public registry of differentially private deployments, at its most open tier, from a certificate.

The fields are those of the Differential Privacy Deployments Registry (Nanayakkara, Ghazi and Vadhan, arXiv:2509.13509;
registry.opendp.org). What a certificate cannot know, such as who publishes the model and where, is null: it is the
publisher's to fill in.
"""

from typing import Any, Final

from fedlearn.privacy.guarantee import Guarantee
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.report.certified import Certified
from fedlearn.report.disclosures import RANDOMNESS, RELATIONS, UNITS

__all__ = ["registry_entries"]

_MODELS: Final = {"shares": "distributed", "clients": "local", "server": "central"}
_ACTORS: Final = "data holders train on their own records; a coordinator sums what they send and holds the model"
_LIMITS: Final = "Not accounted for: other runs on the same data, and settings chosen by looking at private data."


def registry_entries(certified: Certified) -> dict[str, Any]:
    """`registry.json`: one deployment a guarantee, for guarantees against different observers are different claims.

    A run without a guarantee has no entry.
    """
    return {
        "deployments": [{"deployment": _deployment(certified, number)} for number in range(len(certified.guarantees))]
    }


def _deployment(certified: Certified, number: int) -> dict[str, Any]:
    content, guarantee = certified.content, certified.guarantees[number]
    return {
        "name": content["run"]["purpose"],
        "data_curator": None,
        "intended_use": None,
        "data_product_type": "machine-learning model",
        "data_product_region": None,
        "description": f"A model trained by {content['population_size']} data holders without moving their records"
        + (" (a simulation: no data holder took part)." if certified.simulated else "."),
        "publication_date": None,
        "dp_flavor": {
            "name": "approximate differential privacy",
            "input_metric": RELATIONS[guarantee.privacy_unit],
            "output_measure": "smoothed max divergence",
            "data_domain": f"data set {certified.config['data']['dataset']}",
            "unprotected_quantities": "; ".join(content["unprotected"]) or None,
        },
        "privacy_loss": _privacy_loss(certified, number),
        "model": {
            "model_name": _MODELS.get(content["noise"]["by"]),
            "model_name_description": f"{guarantee.mechanism}; holds against {'; '.join(guarantee.holds_against)}",
            "actors": _ACTORS,
            "release_type": "many releases" if certified.releases > 1 else "one release",
            "release_type_description": MECHANISMS[certified.mode].released,
            "access_type": "not interactive",
        },
        "accounting": {
            "post_processing": "The server's optimizer and the scores use noised sums and public data alone.",
            "composition": f"Sequential over {certified.releases} releases ({guarantee.accountant}), parallel over "
            f"data holders. {_LIMITS}",
        },
        "implementation": {
            "pre_processing_eda_hyperparameter_tuning": _LIMITS,
            "mechanisms": f"{guarantee.mechanism}; {RANDOMNESS.get(certified.noise, RANDOMNESS['shares'])}",
            "justification": "; ".join(_assumption(entry) for entry in content["guarantees"][number]["assumptions"]),
        },
    }


def _privacy_loss(certified: Certified, number: int) -> dict[str, Any]:
    entry, guarantee = certified.content["guarantees"][number], certified.guarantees[number]
    return {
        "privacy_unit": str(guarantee.privacy_unit),
        "privacy_unit_description": f"{UNITS[guarantee.privacy_unit]}; {guarantee.neighboring_relation}",
        "privacy_parameters": {"epsilon": guarantee.epsilon, "delta": guarantee.delta},
        "privacy_parameters_description": _described(entry, guarantee),
    }


def _described(entry: dict[str, Any], guarantee: Guarantee) -> str:
    profile = ", ".join(f"{point['epsilon']} at delta {point['delta']}" for point in entry["profile"])
    gaussian = f"; {entry['mu']}-GDP" if entry["mu"] else ""
    return f"against {'; '.join(guarantee.holds_against)}; epsilon {profile}{gaussian}"


def _assumption(entry: dict[str, str]) -> str:
    return f"{entry['text']} (checked by: {entry['checked_by']})"
