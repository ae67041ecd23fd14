"""Programs for the mesh: collectives, GEMV, GEMM and what a transformer is made of."""
