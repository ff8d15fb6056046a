"""Trained models as folders that Hugging Face tools load without this package."""
