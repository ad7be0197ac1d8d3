"""Read programs of torch.export (.pt2) as data.

torch.export.load trusts its file: it unpickles objects, evaluates text as Python, imports modules by name and resolves
names of functions anywhere below `torch`. So nothing of a file reaches torch here but what was understood: the JSON is
checked against a list of what a program may hold (`schema`), operators, structures and sizes against lists and a
grammar of their own, weights and example inputs become tensors within the bytes that the file has, and one run on fake
tensors bounds what the program would take.
"""
