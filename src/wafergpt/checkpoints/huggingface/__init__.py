"""Hugging Face folders <-> stored models: config, safetensors, tokenizer files, model card, hub names."""
