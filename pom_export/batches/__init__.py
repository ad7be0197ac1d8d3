"""Run many sequences through an exported file in batches, with the numbers that each gives by itself."""
