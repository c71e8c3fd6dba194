"""The worker: claims jobs over HTTP, renders GeoTIFFs in a child process, reports back."""

from importlib.metadata import version

__version__ = version("geoprocessing-worker")
