"""GGUF files of architecture `gpt2`, the format of llama.cpp: written and read, streamed and bounded."""
