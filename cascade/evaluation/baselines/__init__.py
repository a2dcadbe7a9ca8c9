"""What a trained stage has to beat: lists and scores of rows by models that fit in seconds."""
