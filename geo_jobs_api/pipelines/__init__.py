"""Named stages of jobs that wait for each other."""
