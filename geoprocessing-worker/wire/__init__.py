"""Everything that leaves the host: the API, downloads, uploads, the virus scanner."""
