"""From a config file and options to a runnable config. The steps and their order are in steps.py."""
