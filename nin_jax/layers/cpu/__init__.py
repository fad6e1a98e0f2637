"""Forms of the layers that exist for CPUs alone, chosen in `layers.conv` and `layers.cpu.pieces`. Same mathematics, other order of work."""
