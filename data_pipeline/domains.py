"""Names of domains, the stains of images."""

from collections import Counter
from collections.abc import Iterable

from data_pipeline.errors import UserError
from data_pipeline.names import Names


def refuse_unknown_domains(domains: Iterable[str], known: Iterable[str], where: object) -> None:
    """UserError for a domain that is not known. where: what has, or names, the domains."""
    here = sorted(set(known))
    for domain in domains:
        if domain not in here:
            hint = Names(here).hint(domain)
            raise UserError(f"{where}: no domain {domain!r} here{hint}; use one of {', '.join(here)}")


def ranked_domains(images: Iterable[str]) -> list[str]:
    """The domains of these images, domain A first: Barcelona, as in the thesis, else the one with the most images."""
    counts = Counter(images)
    return sorted(counts, key=lambda name: (name != "barcelona", -counts[name], name))
