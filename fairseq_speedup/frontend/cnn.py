"""Lengths and MACs of the pretrained convolutional front-end, which is fairseq's own."""

from fairseq_speedup.lengths import conv_length, conv_stack_length, needed_conv_stack_length


def conv_layers_of(feature_extractor) -> list[tuple[int, int, int]]:
    """(dim, kernel_size, stride) of each convolution."""
    convolutions = [block[0] for block in feature_extractor.conv_layers]
    return [(conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in convolutions]


class CnnFrontEnd:
    """
    Args:
        feature_extractor: fairseq's ``ConvFeatureExtractionModel``
    """

    def __init__(self, feature_extractor):
        self.conv_layers = conv_layers_of(feature_extractor)

    def output_lengths(self, lengths):
        """Frames of ``lengths`` samples (int, numpy array or tensor)."""
        return conv_stack_length(lengths, self.conv_layers)

    def needed_samples(self, length: int) -> int:
        """The fewest samples that give ``length`` frames."""
        return needed_conv_stack_length(length, self.conv_layers)

    def macs(self, lengths):
        """Multiply-accumulates for ``lengths`` samples."""
        macs, input_dim = 0, 1
        for dim, kernel_size, stride in self.conv_layers:
            lengths = conv_length(lengths, kernel_size, stride)
            macs = macs + lengths * dim * input_dim * kernel_size
            input_dim = dim
        return macs
