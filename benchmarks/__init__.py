"""Comparisons with the libraries that cojax is measured against."""
