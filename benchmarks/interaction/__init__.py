"""Samples that interact in the loss or the model: values beside rows really left out."""
