"""What is installed and what works here, each found out by trying it."""
