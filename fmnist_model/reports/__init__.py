"""Reports on training runs and batches, as HTML pages and as markdown, with their charts."""
