"""What flows through a model on real data: walks over the graph, statistics, ranges."""
