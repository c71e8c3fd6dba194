"""What every request passes: authentication, limits, middleware, the server itself, the documentation page."""
