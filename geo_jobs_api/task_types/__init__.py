"""Task types, and the JSON Schemas of their payloads."""
