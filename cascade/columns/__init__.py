"""What a column of a table becomes: one set of rules, for training, catalogues, users, batches."""
