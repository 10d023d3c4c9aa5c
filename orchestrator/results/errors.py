"""What can be wrong with kept results, and with what is asked of them."""


class DamagedError(ValueError):
    """A file that is there but cannot be read back as it was written: cut short, altered, or of another kind."""


class NewerError(Exception):
    """Results that a later version of the program wrote."""


class QueryError(Exception):
    """A query that cannot be answered: wrong SQL, something forbidden, too slow, too large, or a damaged file."""


class DamagedQueryError(QueryError, DamagedError):
    """A query that met a damaged file."""
