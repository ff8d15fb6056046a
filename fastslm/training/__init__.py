"""What only training knows: Lightning module, step, optimizer, augmentation, checks, progress."""
