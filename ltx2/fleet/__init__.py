"""Engines that have their clips made on other machines."""
