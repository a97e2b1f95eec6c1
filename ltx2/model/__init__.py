"""The only rooms that know torch: tensors in, tensors out."""
