"""PostgreSQL: connections, schema, the embedded server."""
