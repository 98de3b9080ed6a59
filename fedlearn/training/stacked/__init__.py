"""Many clients in one batched step: closed-form kernels, one file a kind of layer, over tensors (clients, records, …).

Each client has its own weights. Images lie as (clients, records, height, width, channels), so that a convolution is one
batched product whose output is the next layer's input.
"""
