"""The files of a release: graphs, item state, index, filters, and the proof of their parity."""
