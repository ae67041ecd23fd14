"""Any readable checkpoint into any written format, with proof that the numbers are the same."""
