"""The bytes of a TIFF: directories, tags, and the gate before GDAL. Plain arithmetic, no raster library."""
