"""`geotiff_to_cog`: the same pixels in the same place, laid out for ranged reads."""
