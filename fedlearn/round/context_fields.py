"""What both sides derive alike for secure aggregation, from the configuration, the plan and the roster."""

import hashlib

from fedlearn.config.run_config import RunConfig
from fedlearn.model.layout import Layout
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.secagg.transcript import ContextFields

__all__ = ["context_fields_of"]


def context_fields_of(config: RunConfig, plan: Plan, layout: Layout, roster_hash: bytes) -> ContextFields:
    """Every field of the context but session, round, attempt and model hash (docs/protocol.md 9)."""
    mechanism = MECHANISMS[plan.mode]
    sampling = config.sampling_probability if mechanism.samples_records else 1
    return ContextFields(
        config_hash=hashlib.sha256(config.to_bytes()).digest(),
        roster_hash=roster_hash,
        layout_hash=hashlib.sha256(layout.to_bytes()).digest(),
        privacy_mode=mechanism.code,
        planned_cohort=plan.planned_cohort,
        threshold=plan.threshold,
        min_survivors=plan.min_survivors,
        max_colluders=plan.max_colluders or 0,
        dimension=plan.dimension,
        scale_bits=plan.scale_bits,
        sensitivity=plan.sensitivity,
        clip_bound=plan.clip_bound,
        noise_std=plan.noise_std if mechanism.noise.in_shares else 0,
        sampling_numerator=sampling.numerator,
        sampling_denominator=sampling.denominator,
        stage_seconds=config.secure_aggregation.stage_seconds,
    )
