"""Jobs as their owners create and see them."""
