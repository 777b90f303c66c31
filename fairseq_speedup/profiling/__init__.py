"""What a model costs: parameters, multiply-accumulates, time, memory."""
