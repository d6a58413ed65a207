"""What each tools/NAME.py does, one module each."""
