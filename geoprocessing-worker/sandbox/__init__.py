"""The child process and its restrictions. Knows nothing about rasters."""
