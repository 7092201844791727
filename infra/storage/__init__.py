"""The object store and the records kept in it."""
