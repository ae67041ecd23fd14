"""The mathematics once: readable float32 definitions, and the one table that picks a faster equal."""
