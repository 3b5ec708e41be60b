"""Names of domains, the stains of images, where a user gives one."""

from collections.abc import Iterable

from data_pipeline.errors import UserError


def refuse_unknown_domains(domains: Iterable[str], known: Iterable[str], where: object) -> None:
    """UserError that lists the known domains, unless these are among them. where: what has, or names, domains."""
    here = sorted(set(known))
    for domain in domains:
        if domain not in here:
            raise UserError(f"{where}: no domain {domain!r} here; use one of {', '.join(here)}")
