"""Read torch.export programs (.pt2) as data.

torch.export.load trusts its file: it unpickles objects, evaluates text as Python, imports modules by name and resolves
names of functions anywhere below `torch`. Here torch only receives what was understood: the JSON is checked against a
list of what a program may contain (`schema`), and operators, structures and sizes against their own lists and grammar;
weights and example inputs become tensors within the bytes that the file has; and one run on fake tensors bounds what
the program would take.
"""
