"""The ladder from a dense layer to a convolution: weights, operations, bytes and time of every step."""
