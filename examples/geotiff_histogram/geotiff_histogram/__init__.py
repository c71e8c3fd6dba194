"""A task type for the geoprocessing worker: the count of each value in a GeoTIFF."""
