"""Every model keeps the contract; the split DLRM is the textbook's."""
