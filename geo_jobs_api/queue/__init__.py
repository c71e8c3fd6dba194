"""Jobs as rows: states, leases, workers, operators' actions."""
