"""Packages for OpenVINO: the model in its own format, whose requests keep the state, told to compute in float32."""
