"""Recording, storing and loading real video with actions."""
