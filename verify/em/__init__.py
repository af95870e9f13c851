"""What the EM operator is judged by: problems, the step by its definition in Arb, and budgets."""
