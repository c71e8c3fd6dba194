"""The commands other than working: convert a file, list and try task types, check the host."""
