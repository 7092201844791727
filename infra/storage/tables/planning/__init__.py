"""Planning a batch: number it, look up what is done, and cut the new images into shards."""
