"""Stateless maths on cameras and rays."""
