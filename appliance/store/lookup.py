"""Small reads that every question needs several of."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine


class Lookup:
    """A SELECT whose parameters are strings, compiled once.

    On SQLite it goes to the driver: what SQLAlchemy does around a statement takes many times as long as such a read itself, and all
    streams of a gateway wait for it.
    """

    def __init__(self, statement: sa.Select[Any]) -> None:
        self.statement = statement
        self._sql = ""
        self._names: Sequence[str] = ()
        self._made: Callable[[Any], Any] = tuple

    def rows(self, engine: Engine, parameters: dict[str, str]) -> Sequence[Any]:
        """All rows, their columns as attributes. Raises sqlalchemy.exc.DBAPIError."""
        if engine.dialect.name != "sqlite":
            with engine.connect() as connection:
                return connection.execute(self.statement, parameters).all()
        if not self._sql:
            self._compile(engine.dialect)
        driver: Any = engine.dialect.loaded_dbapi
        try:
            with closing(engine.raw_connection()) as borrowed:
                driving: Any = borrowed.driver_connection
                found = driving.execute(self._sql, [parameters[name] for name in self._names]).fetchall()
        except driver.Error as error:
            raise sa.exc.DBAPIError.instance(self._sql, None, error, driver.Error, hide_parameters=True) from error
        return [self._made(row) for row in found]

    def _compile(self, dialect: sa.Dialect) -> None:
        columns = self.statement.selected_columns
        readers = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        row = namedtuple("row", [column.name for column in columns])  # type: ignore[misc]
        self._made = lambda values: row(*(read(value) if read else value for read, value in zip(readers, values, strict=True)))
        compiled = self.statement.compile(dialect=dialect)
        self._names, self._sql = compiled.positiontup or (), str(compiled)
