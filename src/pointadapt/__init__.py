"""pointadapt: adapt pretrained point-cloud models to your own scans by training under 2 % of the parameters."""

__version__ = "0.1.0"
