"""How good an answer is: numpy, float64, nothing that is averaged over cases where it does not exist."""
