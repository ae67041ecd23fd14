"""The same mathematics, fast: C++ with a plain C ABI, built when a compiler is there."""
