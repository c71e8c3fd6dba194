"""The built-in task types, as the child process runs them."""
