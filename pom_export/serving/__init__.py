"""Answer requests over HTTP from one loaded model, whose streams share its calls."""
