"""Which task types are installed, and the process that runs one."""
