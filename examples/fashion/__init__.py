"""Networks for Fashion-MNIST on fastconv: the parts of ``examples/fashion_mnist.py``.

`networks` has the layers and the three networks, `train` the optimiser, the loop and checkpoints, `figures` the
pictures, `invariance` the accuracy on shifted images, `compare` the same step in PyTorch.
"""
