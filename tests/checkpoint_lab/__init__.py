"""What the checkpoint suites share: a disk that fails on purpose, a tiny trainer, checks, planted bugs."""
