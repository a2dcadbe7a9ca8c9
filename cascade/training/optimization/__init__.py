"""What a batch's loss does to the weights: hyperparameters, optimisers, schedules, precision."""
