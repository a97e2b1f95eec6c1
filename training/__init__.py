"""How the embedded model was made: a world of shapes, and each part of LTX-2 trained on it, one after the other."""
