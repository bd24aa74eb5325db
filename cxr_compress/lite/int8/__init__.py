"""How good int8 gets after training: ranges, corrections of weights and biases, layers left in float, what it cost."""
