"""Templates of setups; a package only so that importlib.resources finds them."""
