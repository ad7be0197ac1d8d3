"""The same application on a Ray cluster: replicas of the model, a front before them, and a keeper of the sessions."""
