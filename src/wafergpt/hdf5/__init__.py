"""HDF5 files that a stranger made, read and written through h5py with its doors shut."""
