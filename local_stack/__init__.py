"""Everything on one machine: database, API and worker on loopback, for a first look and for trying things."""
