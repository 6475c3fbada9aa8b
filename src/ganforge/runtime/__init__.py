"""What every other package uses: errors, files, devices, overrides."""
