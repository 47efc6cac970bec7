"""A GPU for tests of Python code on machines without one; see ``device.py``."""
