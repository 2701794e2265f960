"""What a model is made of: modules, layers, batch normalization and its variants, losses."""
