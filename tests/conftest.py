"""Fixtures that tests of several folders share."""

from tests.database import database_url, new_database, server, servers, store, store_url

__all__ = ["database_url", "new_database", "server", "servers", "store", "store_url"]
