"""What models cost: parameters, operations, time; and the paper's tables of them."""
