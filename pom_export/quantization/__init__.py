"""Make a file's weights smaller, choose which of them by what that costs, and measure it."""
