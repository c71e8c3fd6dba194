"""The HTTP layer of all endpoints: authentication, limits, middleware, server, documentation page."""
