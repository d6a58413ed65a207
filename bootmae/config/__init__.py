"""From a config file and options to a runnable config; steps.py lists the steps in their order."""
