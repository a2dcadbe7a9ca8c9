"""Training on a log of choices, in which users found the items by themselves.

That an item is in such a log tells most, so a retriever learns which item comes next among all of
them, and lists on validation rows say when it has learnt enough. Rows from long ago tell less of
what users choose today, and ids that a client will send unknown have to be met in training.
"""
