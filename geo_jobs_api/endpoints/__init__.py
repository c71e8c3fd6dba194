"""The endpoints, a module for each audience or resource."""
