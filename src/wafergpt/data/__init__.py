"""From text files to batches: corpus, packing, shards, loader."""
