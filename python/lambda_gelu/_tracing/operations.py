"""What is known of operations, by the last part of their names."""

SAME = {"clone", "contiguous", "alias", "detach", "lift_fresh", "_to_copy"}
VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
MOVES = {
    *("transpose", "t", "permute", "movedim", "expand", "squeeze", "unsqueeze", "flatten", "unflatten", "repeat"),
    *("select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "flip", "roll"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
}
POOLS = {
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "mean", "amax", "max"),
    *("adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices"),
    *("max_pool3d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
}
# Of two tensors.
PRODUCTS = {"mul", "multiply"}
# They read the shape, and no number.
SHAPES = {
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
    *("new_empty", "new_zeros", "new_ones", "new_full"),
}
# They take numbers out of torch's sight.
LEAVING = {"numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "__reduce_ex__", "__deepcopy__"}
