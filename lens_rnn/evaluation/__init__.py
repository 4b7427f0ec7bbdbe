"""How good a lens is: figures per layer, and the pictures of them."""
