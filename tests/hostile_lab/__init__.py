"""Hostile model folders: built by a script, loaded in confined children that report what happened."""
