"""`geotiff_to_tiles`: a map as web map tiles in one archive."""
