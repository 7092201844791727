"""Report pages, their charts and their markdown."""
