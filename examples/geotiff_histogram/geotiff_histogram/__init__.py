"""A kind of job for the geoprocessing worker: how often each value occurs in a GeoTIFF."""
