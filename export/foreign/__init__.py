"""Models that were trained elsewhere, wrapped into the contract of a scoring stage."""
