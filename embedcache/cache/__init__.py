"""4. cache.zarr: its layout, reading, writing, identity and integrity."""
