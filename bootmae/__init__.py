"""BootMAE for the OpenMMLab stack. ``bootmae.registry`` registers everything that configs name."""

__version__ = '0.1.0'
