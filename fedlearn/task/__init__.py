"""What is learnt: the target of a record, its loss, and the scores of a model."""
