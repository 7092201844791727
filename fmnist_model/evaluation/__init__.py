"""Evaluate and calibrate a network, and compare class mixes."""
