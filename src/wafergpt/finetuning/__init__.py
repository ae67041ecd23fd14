"""From a pre-trained GPT to a task: examples packed apart, objectives, the run, what it publishes."""
