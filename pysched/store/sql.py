"""Loads named queries: a `.sql` file in `pysched/store/queries` holds sections that start with `-- name: NAME`."""

from __future__ import annotations

import re
from importlib import resources
from types import SimpleNamespace

_NAME = re.compile(r"^-- name: (\w+)[ \t]*$", re.MULTILINE)


def load(file: str) -> SimpleNamespace:
    """The queries of `queries/FILE.sql`, each an attribute by its name, as the bytes that psycopg takes.

    They are bytes because psycopg wants text queries to be literals; placeholders are `%(name)s`.
    """
    text = (resources.files("pysched.store.queries") / f"{file}.sql").read_text("utf-8")
    _, *parts = _NAME.split(text)
    names, bodies = parts[::2], parts[1::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{file}.sql names a query twice")
    return SimpleNamespace(
        **{name: body.strip().rstrip(";").encode() for name, body in zip(names, bodies, strict=True)}
    )
