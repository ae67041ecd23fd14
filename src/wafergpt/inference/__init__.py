"""From a prompt to text: requests, sampling, decoding."""
