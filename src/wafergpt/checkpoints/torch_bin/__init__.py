"""Old PyTorch weight files (`pytorch_model.bin`), read without pickle in a confined process."""
