"""Fixtures that tests of several folders share."""

from hypothesis import settings

from tests.database import database_url, new_database, server, servers, store, store_url

__all__ = ["database_url", "new_database", "server", "servers", "store", "store_url"]

# A loaded machine stops any process for longer than hypothesis lets an example take.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
