"""Identifiers of patients and slides: which are the same, and which name nobody."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Context, Decimal

from data_pipeline.names import plain, shown, tidy

# Words for a missing value, compared in `plain` form.
_NOBODY = (
    "unknown|unknwon|unk|not known|unbekannt|inconnu|desconocido|missing|not available|not applicable|"
    "n/a|na|n.a.|n.d.|nd|nan|<na>|nat|none|null|nil|(null)|tbd|to do|?|??|???|.|..|...|/|*|"
    "#n/a|#n/a n/a|#na|#value!|#ref!|#name?|#null!|#div/0!|#num!"
)
_MISSING = frozenset(map(plain, _NOBODY.split("|")))
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")
_MIDNIGHT = re.compile(r"(?<=[0-9])[ T]00:00(:00(\.0+)?)?$")
# Spreadsheets protect text that looks like a number: '007 and ="007".
_GUARDED = re.compile(r"'(.+)|=\"(.*)\"")
# 1.23457E+15, once sixteen digits.
_ROUNDED = re.compile(r"[0-9][.,][0-9]+e\+?[0-9]+")
_MONTHS = "jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez"
_DATE = re.compile(
    rf"[0-9]{{1,2}}[-. /]({_MONTHS})\w*\.?([-. /][0-9]{{2,4}})?|({_MONTHS})\w*[-. /][0-9]{{2,4}}"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{1,2}[./][0-9]{1,2}[./][0-9]{2,4}"
)


def canonical(identifier: str) -> str:
    """The identifier as it was before a spreadsheet changed it; '' for one that names nobody.

    7, 7.0, '7,0', 007 and 7e0 are one number; a date with midnight is the date; Unicode form and doubled blanks are
    normalised. Case and separators stay, as a group's split follows from its name. Does not depend on other data.
    """
    text = " ".join(identifier.split())
    guarded = _GUARDED.fullmatch(text)
    if guarded:
        text = (guarded.group(1) or guarded.group(2) or "").strip()
    name = tidy(text)
    if not plain(name) or plain(name) in _MISSING:
        return ""
    # Only before zeros is a comma surely a decimal comma.
    number = re.sub(r",0{1,2}$", "", name)
    if _NUMBER.fullmatch(number):
        return _plain_number(number)
    return _MIDNIGHT.sub("", name)


def _plain_number(text: str) -> str:
    """A decimal number without leading zeros, trailing decimals and, if it is short, exponent."""
    number = Decimal(text).normalize(Context(prec=len(text)))
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    if not number:
        return "0"
    return f"{number:f}" if abs(exponent) <= 30 else f"{'-' * sign}{''.join(map(str, digits))}e{exponent}"


def identifier_warnings(counts: Mapping[str, int], what: str, merged: bool) -> list[str]:
    """Warnings for identifiers that look wrong. counts: identifier as written ('' for none) -> number of images.

    what: 'patient' or 'slide'. merged: whether identifiers with one `canonical` form count as one.
    """
    written = sorted(name for name in counts if name)
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in written:
        by_name[canonical(name)].append(name)
    nobody = by_name.pop("", [])
    warnings = []
    if nobody:
        images = sum(counts[name] for name in nobody)
        treated = (
            f"it counts as none; write a {what} of that name otherwise"
            if merged
            else f"it counts as one {what}, as when this source was declared; leave the field empty instead"
        )
        named = f"{images} image(s) have the {what} {_listed(nobody)}"
        warnings.append(f"{named}, which looks like a missing one: {treated}")
    empty = counts.get("", 0)
    if empty:
        warnings.append(
            f"{empty} image(s) name no {what}: each is a group of its own, though it may show a {what} of another "
            "split; fill the column"
        )
    one = [names for names in by_name.values() if len(names) > 1]
    if one:
        old = "are taken for several, as when this source was declared, and may be one"
        treated = "are taken for one" if merged else old
        warnings.append(f"{what} {_listed(one[0])}{_more(len(one))} {treated}: write them alike, or in different words")
    warnings += alike_warnings(by_name, what)
    shapes = {"a number that a spreadsheet has rounded": _ROUNDED, "a date": _DATE}
    for shape, pattern in shapes.items():
        odd = [name for name in written if pattern.fullmatch(" ".join(name.casefold().split()))]
        if odd and (pattern is _ROUNDED or len(odd) < len(written)):
            warnings.append(
                f"{what} {_listed(odd)} looks like {shape}: several may have become one, or one several; "
                "make the column text and write the identifiers again"
            )
    return warnings


def alike_warnings(names: Iterable[str], what: str) -> list[str]:
    """A warning for identifiers that differ only in case, separators, leading zeros or a word like 'patient'."""
    loose: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        bare = re.sub(r"^(patient|subject|case|slide|id|no|nr)(?![a-z])", "", plain(name))
        key = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", re.sub(r"(?<![0-9])[\s/]|[\s/](?![0-9])", "", bare))
        loose[key or name].append(name)
    alike = [found for found in loose.values() if len(found) > 1]
    if not alike:
        return []
    named = f"{what} {_listed(alike[0])}{_more(len(alike))}"
    return [f"{named} may be one: they are taken for several; write them alike if so"]


def _listed(names: list[str]) -> str:
    most = [f"'{shown(name)}'" for name in names[:3]] + ["..."] * (len(names) > 3)
    return ", ".join(most[:-1]) + f" and {most[-1]}" if len(most) > 1 else most[0]


def _more(number: int) -> str:
    return f" (and {number - 1} more such)" if number > 1 else ""
