"""The worker: claims jobs over HTTP, renders GeoTIFFs in a child process, reports back."""
