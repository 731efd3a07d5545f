"""The ground floor: pure algebra on NumPy float64. Knows no torch graph, no file format, no terminal."""
