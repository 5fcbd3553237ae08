"""What a model predicts for inputs that a user gives: which model a path means, how it is run, and how inputs are read and answers written."""
