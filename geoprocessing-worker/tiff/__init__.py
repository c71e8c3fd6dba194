"""The bytes of a TIFF: IFDs, tags, and the gate before GDAL. No raster library."""
