"""From a picture to files, and the check of those files."""
