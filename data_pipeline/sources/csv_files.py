"""CSV files as programs write them, in several encodings, with several separators."""

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa

from data_pipeline.errors import UserError
from data_pipeline.names import Names, shown
from data_pipeline.parts import in_parts

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "'|'"}
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # first bytes of new and old workbooks
_AS_UTF8 = "in Excel: Save As, 'CSV UTF-8'; elsewhere: iconv -f WINDOWS-1252 -t UTF-8 OLD.csv > NEW.csv"


class CsvRows:
    """Rows (line number, values by column, stripped) of a CSV file, kept as Arrow columns."""

    def __init__(self, rows: Iterable[tuple[int, list[str]]], columns: Sequence[str]) -> None:
        """columns: name of each value, '' for one that is not used."""
        self._columns = [name for name in columns if name]
        used = [place for place, name in enumerate(columns) if name]
        fields = [("", pa.int64()), *((name, pa.large_string()) for name in self._columns)]
        self._parts = [
            pa.record_batch(
                [[line for line, _ in some], *([values[place].strip() for _, values in some] for place in used)],
                schema=pa.schema(fields),
            )
            for some in in_parts(rows)
        ]

    def __len__(self) -> int:
        return sum(part.num_rows for part in self._parts)

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        for part in self._parts:
            lines, *columns = (column.to_pylist() for column in part.columns)
            for line, *values in zip(lines, *columns, strict=True):
                yield line, dict(zip(self._columns, values, strict=True))


@dataclass(frozen=True)
class CsvFile:
    """A CSV file as it was read."""

    rows: CsvRows
    columns: list[str]  # requested columns by their requested names, others as in the file
    warnings: list[str]  # how the file was interpreted


def read_csv(path: Path, required: Sequence[str] = (), optional: Sequence[str] = ()) -> CsvFile:
    """Read a CSV file with a header. Names of columns match as in `Names.matches`; empty lines are skipped.

    Encoding: UTF-8, UTF-16 with a byte-order mark, or Windows-1252 if its letters are the same in every Western
    encoding. Separator: comma, semicolon, tab or '|', by the header. UserError when the file cannot be read as text,
    lacks a required column, has one twice, or has a row of the wrong length.
    """
    text, warnings = _decoded(path)
    lines = (found.group() for found in _LINE.finditer(text))
    header = next(lines, "")
    stated = re.fullmatch(r"sep=([,;:|\t])\s*", header)  # a line for Excel
    skipped = 1 if stated else 0
    separator = stated.group(1) if stated else _separator(header, (*required, *optional))
    nameless = False
    try:
        reader = csv.reader(lines if stated else chain([header], lines), delimiter=separator, strict=True)
        columns = _columns(path, [name.strip() for name in next(reader, [])], required, optional)

        def each() -> Iterator[tuple[int, list[str]]]:
            nonlocal nameless
            for values in reader:
                values, beyond = values[: len(columns)], "".join(values[len(columns) :]).strip()
                if not "".join(values).strip() and not beyond:
                    continue
                line = reader.line_num + skipped
                if len(values) < len(columns) or beyond:
                    raise UserError(
                        f"{path}, line {line}: expected {len(columns)} values; "
                        f"put quotes round values that hold a {_SEPARATORS.get(separator, repr(separator))}"
                    )
                nameless |= any(value.strip() for name, value in zip(columns, values, strict=True) if not name)
                yield line, values

        rows = CsvRows(each(), columns)
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error}); save it as CSV with commas") from None
    if nameless:
        warnings.append(f"{path.name}: a column without a name is not used")
    return CsvFile(rows, [name for name in columns if name], warnings)


def _separator(header: str, known: Sequence[str]) -> str:
    """The separator that yields most known columns of the header; the comma if none yields more."""
    names = Names(known)

    def found(separator: str) -> int:
        try:
            fields = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:
            return 0
        return len({match for field in fields for match in names.matches(field)})

    return max(_SEPARATORS, key=found)


def _columns(path: Path, header: list[str], required: Sequence[str], optional: Sequence[str]) -> list[str]:
    """The header with known columns by their own names."""
    known = Names((*required, *optional))
    columns: list[str] = []
    for name in header:
        meant = known.matches(name)
        column = meant[0] if len(meant) == 1 else name
        if column and column in columns:
            raise UserError(f"{path}: the column '{shown(column)}' is there twice; keep one of them")
        columns.append(column)
    missing = [column for column in required if column not in columns]
    if missing:
        found = Names(columns)
        hints = "".join(found.hint(column) for column in missing[:1])
        raise UserError(
            f"{path}: the column {', '.join(missing)} is missing; the first line must name the "
            f"columns {','.join(required)} (found: {shown(','.join(columns)) or 'nothing'}){hints}"
        )
    return columns


def _decoded(path: Path) -> tuple[str, list[str]]:
    """The text of a file, and warnings about its encoding; UserError for what cannot be read as text."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read this file ({error.strerror}); check the path") from None
    if raw.startswith(_WORKBOOKS):
        raise UserError(f"{path}: a workbook, no text; save it as CSV (in Excel: 'CSV UTF-8')")
    warnings = []
    try:
        text = raw.decode("utf-16" if raw.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        if raw.startswith(_UTF16):
            raise UserError(f"{path}: not UTF-16 text, as its first bytes say; save it again ({_AS_UTF8})") from None
        text = _western(raw)
        if not text:
            line = raw.count(b"\n", 0, error.start) + 1
            shape = raw[max(0, error.start - 12) : error.start + 6].decode("ascii", "backslashreplace").strip()
            raise UserError(
                f"{path}, line {line}: not UTF-8 text (near '{shown(shape)}'), and its encoding is unknown; "
                f"save it as UTF-8 ({_AS_UTF8})"
            ) from None
        warnings.append(f"{path.name}: not UTF-8; read as Windows-1252 (Western European). Better save it as UTF-8")
    if "\0" in text:
        raise UserError(f"{path}: not text (it holds null characters); save it as UTF-8 ({_AS_UTF8})")
    return text, warnings


def _western(raw: bytes) -> str:
    """The text as Windows-1252; '' if Western, Central European or Turkish encodings would give another text.

    Also '' for words without an ASCII letter, as other alphabets have.
    """
    if any(0x80 <= byte < 0xA0 for byte in raw):
        return ""
    try:
        texts = {raw.decode(encoding) for encoding in ("cp1252", "cp1250", "cp1254", "iso8859-15")}
    except UnicodeDecodeError:
        return ""
    words = re.findall(rb"[A-Za-z\xc0-\xff]{2,}", raw)
    foreign = any(not re.search(rb"[A-Za-z]", word) for word in words)
    return texts.pop() if len(texts) == 1 and not foreign else ""
