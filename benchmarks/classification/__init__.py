"""Classification on real data with wrong labels put in: shared by pruning and mislabelled."""
