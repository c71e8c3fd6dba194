"""The endpoints, one module per audience or resource."""
