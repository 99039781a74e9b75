"""What a generated video is judged by."""
