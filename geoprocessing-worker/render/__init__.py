"""From a plan to a picture."""
