"""A model file becomes a module, and the module a census of its layers."""
