"""The object store and the records in it."""
