"""One file per kind of graph, behind the small protocol of `graphs.base`."""
