"""What the training benchmark times: each engine builds one `step()`."""
