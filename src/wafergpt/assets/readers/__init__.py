"""From an asset's files to clean documents: one module per kind of file, none runs code of a package."""
