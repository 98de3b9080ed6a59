"""`fedlearn audit`: attacks on a run's real code path. Exit code 1 where one proves more than the run claims."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlearn.cli.options import print_json
from fedlearn.errors import FedlearnError

if TYPE_CHECKING:
    from fedlearn.audit.inversion import InversionAudit
    from fedlearn.audit.mechanism import MechanismAudit
    from fedlearn.audit.membership import MembershipAudit
    from fedlearn.audit.outcome import Audit

__all__ = ["app"]

app = typer.Typer(
    help="Attack a run's real code path, and compare with what the run claims.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Scenario = Annotated[str | None, typer.Argument(hidden=True)]
Set = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, any number of times.")]
Output = Annotated[
    Path | None, typer.Option("--output", help="Folder for audit.json, which may be the folder of the audited run.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.command("mechanism")
def mechanism(scenario: Scenario = None, set_: Set = None, output: Output = None, as_json: AsJson = False) -> None:
    """Is what leaves as noisy as it is booked? One release with canaries, seen by the worst adversary allowed.

    SCENARIO is the name of a shipped scenario or a run's TOML file; left out, it is the run in --output, else digits.
    """
    audited = _Audited(scenario, set_, output)
    from fedlearn.audit.mechanism import audit_mechanism
    from fedlearn.cli.display import bar

    with bar("releases") as progress:
        told = audit_mechanism(audited.config, progress=progress)
    audited.conclude(told, _mechanism_lines(told), as_json=as_json)


@app.command("inversion")
def inversion(scenario: Scenario = None, set_: Set = None, output: Output = None, as_json: AsJson = False) -> None:
    """Can a record be rebuilt from what its client sends, or from the released sum? A model with a linear first layer.

    SCENARIO is as in `audit mechanism`.
    """
    audited = _Audited(scenario, set_, output)
    from fedlearn.audit.inversion import audit_inversion
    from fedlearn.cli.display import bar

    with bar("records") as progress:
        told = audit_inversion(audited.config, progress=progress)
    audited.conclude(told, _inversion_lines(told), as_json=as_json)


@app.command("membership")
def membership(scenario: Scenario = None, set_: Set = None, output: Output = None, as_json: AsJson = False) -> None:
    """Can whoever sees the model tell which records it was trained on? Shadow models, in modes that protect records.

    SCENARIO is as in `audit mechanism`.
    """
    audited = _Audited(scenario, set_, output)
    from fedlearn.audit.membership import audit_membership
    from fedlearn.cli.display import bar

    with bar("models") as progress:
        told = audit_membership(audited.config, progress=progress)
    audited.conclude(told, _membership_lines(told), as_json=as_json)


class _Audited:
    """The run to attack, and what becomes of what is found."""

    def __init__(self, scenario: str | None, set_: list[str] | None, output: Path | None) -> None:
        from fedlearn.audit.record import AuditFolder
        from fedlearn.config.run_config import RunConfig

        self._folder = AuditFolder(output) if output is not None else None
        run = self._folder.run() if self._folder else None
        named = scenario is not None or bool(set_)
        self.config = RunConfig.load(scenario or "digits", set_ or []) if named or run is None else run
        if self._folder:
            self._folder.check_is_about(self.config)

    def conclude(self, audit: "Audit", lines: list[str], *, as_json: bool) -> None:
        """Say it on stderr, keep it, print the object if asked for; fail where the claim, or the audit itself, fell.

        Raises:
            FedlearnError: the audit did not pass.
        """
        from fedlearn.audit.record import config_hash

        told = {**audit.as_dict(), "config_hash": config_hash(self.config)}
        for line in lines:
            typer.echo(line, err=True)
        if self._folder:
            self._folder.write(told, pictures=audit.pictures())
            typer.echo(f"Written: {self._folder.file}", err=True)
        if as_json:
            print_json(told)
        if audit.failure:
            raise FedlearnError(audit.failure)


def _membership_lines(told: "MembershipAudit") -> list[str]:
    return [
        f"{told.models} models of mode {told.mode} and as many without privacy, {told.rounds} rounds over "
        f"{told.records} records; {told.canaries} of these are canaries with a wrong label, each in half of them.",
        *(
            f" {100 * rate.false_positive_rate:g} % taken for members: {100 * rate.true_positive_rate:.1f} % of the "
            f"members found; the guarantee allows {100 * rate.ceiling:.1f} %; without privacy "
            f"{100 * rate.control_true_positive_rate:.1f} %"
            for rate in told.rates
        ),
        f"{'passed' if told.passed else 'FAILED'}; an honest run fails with a probability of at most "
        f"{told.false_alarm_rate:g}.",
    ]


def _inversion_lines(told: "InversionAudit") -> list[str]:
    covered = {name: "" if name in told.protected else " (not covered by the guarantee)" for name in told.FROM}
    masked = told.cosine_if_masking_fails
    fallen = (
        [] if masked is None else [f" unmasked   {masked:6.3f}  from it, if masks fell{covered['if_masking_fails']}"]
    )
    return [
        f"{told.records} records, each alone at its client in one round of mode {told.mode}; 1 is a copy.",
        f" control    {told.cosine_control:6.3f}  rebuilt without privacy",
        f" sent       {told.cosine_sent:6.3f}  rebuilt from what leaves the client{covered['sent']}",
        *fallen,
        f" aggregate  {told.cosine_aggregate:6.3f}  rebuilt from the released sum",
        f" no client  {told.cosine_mean_image:6.3f}  the mean of the public records",
        f"{'passed' if told.passed else 'FAILED'}; an honest run fails with a probability of at most "
        f"{told.false_alarm_rate:g}.",
    ]


def _mechanism_lines(told: "MechanismAudit") -> list[str]:
    from fedlearn.privacy.guarantee import rounded_up

    through = f"{told.masked_releases} of {told.releases} releases went through secure aggregation"
    equal = ", whose sums equal the plain ones bit for bit" if told.masked_sums_equal else ", whose sums DIFFER"
    return [
        f"One release of mode {told.mode} at noise multiplier {told.noise_multiplier:g}, {told.planned_cohort} clients "
        f"of which {told.lost} drop out and {told.colluders} work with the server; {told.samples} canaries.",
        f" proven   epsilon at least {told.epsilon_lower:.3f} ({100 * told.confidence:g} % confidence)",
        f" claimed  epsilon {rounded_up(told.epsilon_claimed, 3):.3f} at delta {told.delta:g}, which is exact; "
        f"booked {rounded_up(told.epsilon_booked, 3):.3f}",
        f" control  without privacy: at least {told.control_epsilon_lower:.3f}, "
        + ("told apart" if told.control_passed else "NOT told apart"),
        f" {through}{equal if told.masked_releases else ''}.",
        f" Stored records through the whole engine, {told.engine_rounds} rounds each, gradients up to "
        f"{told.engine_reach:.1f} times as long as their bound:",
        *(
            f"  {'ok    ' if check['passed'] else 'FAILED'} {check['name']}: {check['found']}"
            for check in told.engine_checks
        ),
        f"{'passed' if told.passed else 'FAILED'}; an honest mechanism fails with a probability of at most "
        f"{told.false_alarm_rate:g}.",
    ]
