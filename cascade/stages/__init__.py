"""What a request runs through: retrieve, prerank, rank, and the pipeline that chains them."""
