"""Database, API and worker on one machine, on loopback, for demonstrations and tests."""
