"""Names of domains, the stains of images, where a user gives one."""

from collections.abc import Iterable

from data_pipeline.errors import UserError
from data_pipeline.names import Names


def refuse_unknown_domains(domains: Iterable[str], known: Iterable[str], where: object) -> None:
    """UserError with the known domains and what may be meant, unless these are among them.

    where: what has, or names, domains.
    """
    here = sorted(set(known))
    for domain in domains:
        if domain not in here:
            hint = Names(here).hint(domain)
            raise UserError(f"{where}: no domain {domain!r} here{hint}; use one of {', '.join(here)}")
