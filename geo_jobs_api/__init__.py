"""The job API: public and worker endpoints over a queue in PostgreSQL, and signed storage."""
