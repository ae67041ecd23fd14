"""What a Cerebras-GPT is: its configuration, family, parametrisation and forward pass."""
