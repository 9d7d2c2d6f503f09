"""Exchange with other libraries. Nothing here is imported before it is used."""
